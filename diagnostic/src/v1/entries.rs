//! Endpoints about single entries.

use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use networkdb::engine::WriteKind;
use networkdb::node::{Write, WriteAction};
use networkdb::{Key, NodeId, VersionTag, WriteError};
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::extract::{
    BODY_BYTES_MAX, Base64, Condition, IfNoneMatch, Names, OfEntry, Params, parse, tags,
};
use super::problem::Problem;
use super::{Api, Json, networks};
use crate::upload::{media_type, read};

/// The media type of a value as it is.
const RAW: &str = "application/octet-stream";

/// How a value travels.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AsRaw {
    /// Sends the value as it is, not as JSON, and takes any body as it is but one that says it is JSON; `?raw` is enough.
    #[serde(default)]
    #[param(inline)]
    raw: Flag,
}

/// A flag in a query.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Flag {
    #[default]
    #[serde(rename = "false")]
    Off,
    #[serde(rename = "")]
    Bare,
    #[serde(rename = "true")]
    On,
}

impl PartialSchema for Flag {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(["false", "true", ""]))
            .into()
    }
}

impl ToSchema for Flag {}

/// A value as it is.
struct Raw;

impl PartialSchema for Raw {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .into()
    }
}

impl ToSchema for Raw {}

/// A visible entry.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Entry {
    /// Its key.
    #[schema(value_type = String)]
    pub(crate) key: Key,
    /// Its value.
    value: Base64,
    /// The node that wrote it.
    #[schema(value_type = String)]
    owner: NodeId,
    /// Lamport time of the write.
    time: u64,
    /// The version: what `ETag` and `If-Match` carry in quotes.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    version: String,
}

/// A write that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Written {
    /// The version that the entry has by it.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    version: String,
}

/// The value of an entry.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewValue {
    /// The new value.
    value: Base64,
}

impl AsRaw {
    fn is_raw(&self) -> bool {
        match self.raw {
            Flag::Off => false,
            Flag::Bare | Flag::On => true,
        }
    }
}

impl From<networkdb::node::Entry> for Entry {
    fn from(entry: networkdb::node::Entry) -> Self {
        Self {
            version: entry.version().tag().to_string(),
            key: entry.key,
            value: Base64(entry.value),
            owner: entry.owner,
            time: entry.time.0,
        }
    }
}

/// Returns the entity tag of a version.
fn etag(version: VersionTag) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).expect("quotes and hex digits")
}

/// Whether the client wants a value as it is.
fn accepts_raw(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let mut types = accept.into_iter().flat_map(|accept| accept.split(','));
    types.any(|it| it.split(';').next().is_some_and(|it| it.trim() == RAW))
}

/// Reads an entry as this node holds it.
#[utoipa::path(get, path = "/v1/networks/{network}/tables/{table}/entries/{key}", tag = "entries",
    operation_id = "getEntry",
    params(OfEntry, AsRaw, IfNoneMatch),
    responses(
    (status = 200, description = "The entry; as it is with `?raw` or `Accept: application/octet-stream`.",
        headers(("ETag" = String, description = "The version, in quotes.")),
        content((Entry = "application/json"), (Raw = "application/octet-stream"))),
    (status = 304, description = "The client has this version.",
        headers(("ETag" = String, description = "The version, in quotes."))),
    (status = 404, response = Problem),
))]
pub(crate) async fn get(
    State(api): State<Api>,
    Names(names): Names<OfEntry>,
    Params(query): Params<AsRaw>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let known = tags(&headers, &IF_NONE_MATCH)?;
    networks::check(&api.db, &names.network)?;
    let entry = api.db.entry(&names.network, &names.table, &names.key);
    let entry = entry.map_err(Problem::unread)?;
    let version = entry.version().tag();
    let etag = [(ETAG, etag(version))];
    if known.is_some_and(|known| known.have(version)) {
        return Ok((StatusCode::NOT_MODIFIED, etag).into_response());
    }
    if query.is_raw() || accepts_raw(&headers) {
        let raw = [(CONTENT_TYPE, HeaderValue::from_static(RAW))];
        return Ok((etag, raw, entry.value).into_response());
    }
    Ok((etag, Json(Entry::from(entry))).into_response())
}

/// Writes an entry: updates or creates it. The other nodes get it by gossip.
///
/// With the header `If-Match: "VERSION"` (or several, or `*`) it is only updated, and only while it has one of these versions;
/// with `If-None-Match: *` it is only created. A condition that does not hold is answered with 412, and nothing is written.
#[utoipa::path(put, path = "/v1/networks/{network}/tables/{table}/entries/{key}", tag = "entries",
    operation_id = "putEntry",
    params(OfEntry, AsRaw),
    request_body(content((NewValue = "application/json"), (Raw = "application/octet-stream"))),
    responses(
    (status = 200, description = "The entry was updated.", body = Written,
        headers(("ETag" = String, description = "The new version, in quotes."))),
    (status = 201, description = "The entry was created.", body = Written,
        headers(("ETag" = String, description = "The new version, in quotes."))),
    (status = 404, response = Problem), (status = 408, response = Problem), (status = 409, response = Problem),
    (status = 412, response = Problem), (status = 413, response = Problem), (status = 415, response = Problem),
    (status = 422, response = Problem),
))]
pub(crate) async fn put(
    State(api): State<Api>,
    Names(names): Names<OfEntry>,
    Params(query): Params<AsRaw>,
    condition: Condition,
    request: Request,
) -> Result<Response, Problem> {
    let value = value_of(request, query.is_raw()).await?;
    let is_conditional = condition != Condition::Always;
    let action = match condition {
        Condition::Always => WriteAction::Put(value),
        Condition::Absent => WriteAction::Create(value),
        Condition::Present => WriteAction::Update(value),
        Condition::Versions(versions) => WriteAction::UpdateIf { value, versions },
    };
    let accepted = api.db.perform(write_of(names, action)).await;
    let accepted = accepted.map_err(|error| refused(error, is_conditional))?;
    let status = match accepted.kind {
        WriteKind::Create => StatusCode::CREATED,
        WriteKind::Update | WriteKind::Delete => StatusCode::OK,
    };
    let tag = accepted.version.tag();
    let version = tag.to_string();
    Ok((status, [(ETAG, etag(tag))], Json(Written { version })).into_response())
}

/// Deletes an entry, whoever owns it.
///
/// With the header `If-Match: "VERSION"` (or several, or `*`) only while it has one of these versions, else the answer is 412.
#[utoipa::path(delete, path = "/v1/networks/{network}/tables/{table}/entries/{key}", tag = "entries",
    operation_id = "deleteEntry",
    params(OfEntry),
    responses(
    (status = 204, description = "The entry was deleted."),
    (status = 404, response = Problem), (status = 409, response = Problem), (status = 412, response = Problem),
))]
pub(crate) async fn delete(
    State(api): State<Api>,
    Names(names): Names<OfEntry>,
    condition: Condition,
) -> Result<StatusCode, Problem> {
    let is_conditional = condition != Condition::Always;
    let action = match condition {
        Condition::Always | Condition::Present => WriteAction::Delete,
        Condition::Versions(versions) => WriteAction::DeleteIf { versions },
        Condition::Absent => {
            return Err(Problem::bad_request("a delete takes no If-None-Match"));
        }
    };
    let deleted = api.db.perform(write_of(names, action)).await;
    deleted.map_err(|error| refused(error, is_conditional))?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a client is told that had a condition, or had none.
fn refused(error: WriteError, is_conditional: bool) -> Problem {
    let problem = Problem::from(error);
    if is_conditional {
        return problem.conditional();
    }
    problem
}

fn write_of(names: OfEntry, action: WriteAction) -> Write {
    Write {
        network: names.network,
        table: names.table,
        key: names.key,
        action,
    }
}

/// Reads a value, as it is or out of JSON.
async fn value_of(request: Request, is_raw: bool) -> Result<Bytes, Problem> {
    let media_type = media_type(request.headers());
    let is_json = media_type == "application/json";
    if !is_json && !is_raw && media_type != RAW {
        return Err(Problem::media_type(format!(
            "the body must be application/json or {RAW}"
        )));
    }
    let body = read(request.into_body(), BODY_BYTES_MAX).await?;
    if is_json {
        return parse::<NewValue>(&body).map(|body| body.value.0);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_is_what_the_client_accepts_by_name() {
        for (accept, is_raw) in [
            ("application/octet-stream", true),
            ("text/plain, application/octet-stream;q=0.5", true),
            ("*/*", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(accepts_raw(&headers), is_raw, "{accept}");
        }
    }
}
