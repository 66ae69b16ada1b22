//! The diagnostic HTTP server of a node: Docker's API, answered byte for byte as Docker's server does.
//!
//! Every answer to a known or unknown path has status 200; the first word of the body says how it went. `json` in the
//! query asks for JSON, `json=pretty` for indented JSON; `unsafe` sends and shows values as raw bytes instead of base64.
//! Parameters come from the query or, in a POST, PUT or PATCH, from a form, which goes before the query.
//!
//! | path | parameters | answer |
//! |---|---|---|
//! | `/help` | | the registered paths |
//! | `/ready` | | `OK` |
//! | `/join` | `members` | joins the cluster of any of these `HOST[:PORT]` |
//! | `/leave` | \[`members`\] | takes this node out of the cluster; the process stays |
//! | `/joinnetwork`, `/leavenetwork` | `nid` | attaches this node to a network, or ends that |
//! | `/clusterpeers` | | the nodes of the cluster |
//! | `/networkpeers` | `nid` | the nodes attached to a network |
//! | `/createentry`, `/updateentry` | `nid tname key value` | writes an entry |
//! | `/deleteentry` | `nid tname key` | deletes an entry |
//! | `/getentry` | `nid tname key` | one entry as this node holds it |
//! | `/gettable` | `nid tname` | all visible entries of a table; from 1 MiB on, read while it is sent |
//! | `/networkstats` | `nid` | entries, deleted ones counted, and events that wait to be sent |
//!
//! A success reply to a write means *accepted here*: this node holds it and shows it from then on. The other nodes get it
//! by gossip, a moment later. Reads never ask another node.
//!
//! Under `/v1/` is an API with statuses of HTTP: node, members, networks, tables, entries (by page, on the condition of a
//! version, in batches) and watches as server-sent events. `/v1/openapi.json` describes it. `/metrics` is for Prometheus.
//! `/ui` is a page for operators that shows all this in a browser.
//!
//! Other layers mount their own paths through [`Routes`], before or while the server runs. Limits answer with their own
//! status (400, 408, 413, 414, 431), and so does [`Access`] (401, 403): what is asked of whoever is not on this machine, and
//! of pages in a browser. Each routed request leaves one line in the log, which never holds a value.

mod access;
mod audit;
mod backlog;
mod body;
mod client;
mod cluster;
mod connections;
mod entries;
mod extras;
mod failure;
pub mod flags;
mod json;
mod listing;
pub mod logfmt;
mod metrics;
mod params;
mod patience;
mod places;
mod reply;
mod routes;
mod server;
mod service;
mod status;
mod tls;
mod ui;
mod upload;
mod v1;
mod value;
mod web;

pub use access::{Access, TokenError, Tokens};
pub use client::{Answer, Client, ClientError, ClientFileError};
pub use extras::Extras;
pub use failure::Failure;
pub use hyper::Method;
pub use metrics::{Families, Labels};
pub use params::Params;
pub use reply::Reply;
pub use routes::{PathTaken, Request, Route, Routes};
pub use server::{BindError, Running, Server};
pub use tls::{ClientFiles, Tls, TlsError, TlsFiles};

/// What endpoints below `/v1/` are made of, for layers that add some by [`Extras`].
pub mod api {
    pub use crate::v1::{Json, JsonBody, Names, Nothing, OfNetwork, Params, Problem, no_query};
    pub use utoipa_axum::router::OpenApiRouter;
}
