//! Endpoints that tell what changes, as server-sent events.
//!
//! A stream starts with a snapshot, an event `snapshot` for each entry and `synced` after the last; then each change is an
//! event `create`, `update` or `delete`. `synced` and what follows have an id; a client that was cut off and sends the last
//! one as `Last-Event-ID` is told what came after it. When that is not held any more, or when the client was too slow, it
//! gets `resync`: it forgets everything, and a new snapshot follows. Ids are good for the path they were told at.
//!
//! A client that reads the entries elsewhere, page by page, asks for no snapshot: it starts with `synced`, and gets `resync`
//! and `synced` where others get a new snapshot.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use networkdb::engine::value_hash;
use networkdb::node::{Position, Told, Watch, WatchEvent, WatchFilter};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use super::extract::{Base64, Names, OfNetwork, OfTable, Params};
use super::problem::Problem;
use super::{Api, Stopped, networks};

/// Watches at the same time; further ones are refused.
const WATCHES_MAX: usize = 200;
/// What is waited between two looks at whether clients are still there: longer than the system of one that is gone takes to
/// say so.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Looks. What is sent to a client that is gone is answered with a reset, and only what is sent after that fails.
const LOOKS: usize = 4;
/// After how much silence a comment is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Bytes of the longest id that is looked at.
const ID_BYTES_MAX: usize = 128;
/// Events are sent together up to this size.
const CHUNK_BYTES: usize = 32 << 10;
/// Chunks that wait for a client that reads slowly; what comes after them waits in the watch.
const CHUNKS_WAITING: usize = 2;

/// How to watch.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct How {
    /// `false` ends the stream after the snapshot.
    #[param(default = true)]
    follow: Option<bool>,
    /// `false` leaves out what the snapshot tells, at the start and after `resync`: `synced` comes without it, and only
    /// changes follow.
    #[param(default = true)]
    snapshot: Option<bool>,
}

/// Where the client was.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what last_event reads")]
pub(crate) struct LastEvent {
    /// The id of the last event that the client has got.
    #[param(rename = "Last-Event-ID", max_length = 128)]
    last_event_id: Option<String>,
}

/// An event of a stream.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes what is written as text")]
pub(crate) struct ServerEvent {
    /// What it tells.
    event: EventName,
    /// What `Last-Event-ID` carries to go on from here. Empty: nobody can go on from here.
    #[schema(nullable = false)]
    id: Option<String>,
    /// JSON: a Change, LostEntry or MemberChange, or `{}`.
    data: String,
}

/// What an event tells.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes what is written as text")]
pub(crate) enum EventName {
    /// An entry that is there (Change).
    Snapshot,
    /// The snapshot is complete.
    Synced,
    /// An entry has come (Change).
    Create,
    /// An entry has another value (Change).
    Update,
    /// An entry has gone (Change).
    Delete,
    /// An entry of this node was taken over (LostEntry).
    Lost,
    /// A member that is there, has come or has gone (MemberChange).
    Member,
    /// Forget everything: a new snapshot follows.
    Resync,
}

/// The data of `snapshot`, `create`, `update` and `delete`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Change {
    /// The network.
    network: String,
    /// The table.
    table: String,
    /// The key.
    key: String,
    /// What is seen from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    value: Option<Base64>,
    /// What was seen before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    previous: Option<Base64>,
}

/// The data of `lost`: another node has replaced or deleted an entry of this node.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LostEntry {
    /// The network.
    network: String,
    /// The table.
    table: String,
    /// The key.
    key: String,
    /// The node that wrote since.
    by: String,
}

/// The data of `member`, which only the watch of everything tells.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MemberChange {
    /// The node.
    node: String,
    /// `up`, `down` or `left`.
    state: &'static str,
    /// Where it is, when it is up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    addr: Option<String>,
}

/// Writes events as text.
#[derive(Debug)]
struct Events {
    /// What the ids are good for.
    scope: u64,
    /// Whether the client wants the snapshot.
    tells_snapshot: bool,
    text: String,
}

impl Events {
    fn push(&mut self, name: &str, id: Option<&str>, data: &impl Serialize) {
        let data = serde_json::to_string(data).expect("names and base64 are JSON");
        writeln!(self.text, "event: {name}").expect("a string takes everything");
        if let Some(id) = id {
            writeln!(self.text, "id: {id}").expect("a string takes everything");
        }
        write!(self.text, "data: {data}\n\n").expect("a string takes everything");
    }

    fn id(&self, position: Position) -> String {
        format!("{position}-{:x}", self.scope)
    }

    /// Writes what a watch tells; returns whether the snapshot ends with it.
    fn tell(&mut self, told: Told) -> bool {
        match told {
            Told::Snapshot(event) => {
                if self.tells_snapshot || event == WatchEvent::Resync {
                    self.event(event, None, true);
                }
            }
            Told::Event(event, position) => {
                let id = position.map(|position| self.id(position));
                self.event(event, id.as_deref(), false);
            }
            Told::Synced(position) => {
                let id = self.id(position);
                self.push("synced", Some(&id), &serde_json::json!({}));
                return true;
            }
        }
        false
    }

    fn event(&mut self, event: WatchEvent, id: Option<&str>, is_snapshot: bool) {
        match event {
            WatchEvent::Change(change) => {
                let name = match (&change.previous, &change.value) {
                    _ if is_snapshot => "snapshot",
                    (None, _) => "create",
                    (Some(_), Some(_)) => "update",
                    (Some(_), None) => "delete",
                };
                let data = Change {
                    network: change.network.into(),
                    table: change.table.into(),
                    key: change.key.into(),
                    value: change.value.map(Base64),
                    previous: change.previous.map(Base64),
                };
                self.push(name, id, &data);
            }
            WatchEvent::Lost(entry) => {
                let data = LostEntry {
                    network: entry.network.into(),
                    table: entry.table.into(),
                    key: entry.key.into(),
                    by: entry.by.into(),
                };
                self.push("lost", id, &data);
            }
            WatchEvent::MemberUp { node, addr } => {
                self.member(node.into(), "up", Some(addr.to_string()), id);
            }
            WatchEvent::MemberDown { node, left } => {
                let state = if left { "left" } else { "down" };
                self.member(node.into(), state, None, id);
            }
            // An empty id: a client that is cut off before the snapshot is complete starts anew.
            WatchEvent::Resync => self.push("resync", Some(""), &serde_json::json!({})),
        }
    }

    fn member(
        &mut self,
        node: String,
        state: &'static str,
        addr: Option<String>,
        id: Option<&str>,
    ) {
        self.push("member", id, &MemberChange { node, state, addr });
    }
}

/// The body of a stream of events.
struct Stream(mpsc::Receiver<Bytes>);

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// Places for watches.
///
/// A client that has gone is found out when something is sent to it. A quiet watch sends little, so when all places are taken
/// every client is sent something, and those that are gone make room.
#[derive(Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    looks: watch::Sender<()>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(WATCHES_MAX)),
            looks: watch::Sender::new(()),
        }
    }
}

impl Places {
    async fn take(&self) -> Result<OwnedSemaphorePermit, Problem> {
        for _ in 0..LOOKS {
            if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
                return Ok(place);
            }
            self.looks.send_replace(());
            let place = timeout(LOOK_PAUSE, Arc::clone(&self.free).acquire_owned()).await;
            if let Ok(Ok(place)) = place {
                return Ok(place);
            }
        }
        Err(Problem::busy(format!(
            "{WATCHES_MAX} watches are open, which is the limit"
        )))
    }
}

/// A watch on its way to a client.
struct Pump {
    watch: Watch,
    events: Events,
    chunks: mpsc::Sender<Bytes>,
    follows: bool,
    /// Somebody wants to know whether the client is still there.
    looks: watch::Receiver<()>,
    /// A place among the watches.
    _place: OwnedSemaphorePermit,
}

impl Pump {
    /// Sends until the client, the node or the server is gone, or the snapshot ends and nothing is to follow.
    async fn run(mut self, mut stopped: Stopped) {
        let chunks = self.chunks.clone();
        tokio::select! {
            () = self.send_all() => {}
            () = chunks.closed() => {}
            () = stopped.wait() => {}
        }
    }

    async fn send_all(&mut self) {
        // So that the client knows it is heard.
        self.events.text.push_str(":\n\n");
        loop {
            let is_last = self.gather().await;
            let text = std::mem::take(&mut self.events.text);
            if self.chunks.send(text.into()).await.is_err() || is_last {
                return;
            }
        }
    }

    /// Takes what is there, or waits for the first; returns whether it is the last.
    async fn gather(&mut self) -> bool {
        while self.events.text.len() < CHUNK_BYTES {
            // What is left out of a snapshot leaves nothing to send.
            let patience = if self.events.text.is_empty() {
                KEEP_ALIVE
            } else {
                Duration::ZERO
            };
            let told = tokio::select! {
                biased;
                told = timeout(patience, self.watch.next_told()) => told.ok(),
                // Nobody takes the sender away: it lasts as long as the server.
                _ = self.looks.changed() => None,
            };
            match told {
                Some(Some(told)) => {
                    let is_synced = self.events.tell(told);
                    if is_synced && !self.follows {
                        return true;
                    }
                }
                Some(None) => return true,
                None if self.events.text.is_empty() => {
                    self.events.text.push_str(": still here\n\n");
                    return false;
                }
                None => return false,
            }
        }
        false
    }
}

/// Opens a stream of what a filter lets through.
async fn open(
    api: Api,
    filter: WatchFilter,
    how: &How,
    path: &str,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let place = api.watches.take().await?;
    let scope = value_hash(path.as_bytes());
    let (from, is_unknown) = last_event(headers, scope)?;
    let watch = api.db.watch_from(filter, from).await?;
    let mut events = Events {
        scope,
        tells_snapshot: how.snapshot.unwrap_or(true),
        text: String::new(),
    };
    if is_unknown {
        events.event(WatchEvent::Resync, None, true);
    }
    let (chunks, receiver) = mpsc::channel(CHUNKS_WAITING);
    let pump = Pump {
        watch,
        events,
        chunks,
        follows: how.follow.unwrap_or(true),
        looks: api.watches.looks.subscribe(),
        _place: place,
    };
    tokio::spawn(pump.run(api.stopped));
    let mut response = Response::new(Body::new(Stream(receiver).boxed_unsync()));
    let headers = response.headers_mut();
    let content_type = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Returns where the client was; and whether it was somewhere that means nothing here.
fn last_event(headers: &HeaderMap, scope: u64) -> Result<(Option<Position>, bool), Problem> {
    let Some(text) = headers.get("last-event-id").filter(|id| !id.is_empty()) else {
        return Ok((None, false));
    };
    if text.len() > ID_BYTES_MAX {
        return Err(Problem::bad_request("no event has so long an id"));
    }
    let text = text.to_str().unwrap_or_default();
    let position = text.rsplit_once('-').and_then(|(position, of)| {
        let is_it = u64::from_str_radix(of, 16) == Ok(scope);
        position.parse().ok().filter(|_| is_it)
    });
    Ok((position, position.is_none()))
}

/// Watches everything: all networks that this node is attached to, and the members of the cluster.
#[utoipa::path(get, path = "/v1/watch", tag = "watch", operation_id = "watch",
    params(How, LastEvent),
    responses((status = 200, body = ServerEvent, content_type = "text/event-stream",
        description = "Server-sent events: `snapshot` (Change), `synced`, `create`, `update`, `delete` (Change), `lost` (LostEntry), `member` (MemberChange), `resync`."))
)]
pub(crate) async fn everything(
    State(api): State<Api>,
    uri: Uri,
    Params(how): Params<How>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let filter = WatchFilter {
        members: true,
        ..WatchFilter::default()
    };
    open(api, filter, &how, uri.path(), &headers).await
}

/// Watches a network. Should this node leave it, the watch goes on and tells when it is back.
#[utoipa::path(get, path = "/v1/networks/{network}/watch", tag = "watch", operation_id = "watchNetwork",
    params(OfNetwork, How, LastEvent),
    responses((status = 200, body = ServerEvent, content_type = "text/event-stream",
        description = "Server-sent events, as of `/v1/watch` but for `member`."), (status = 404, response = Problem))
)]
pub(crate) async fn network(
    State(api): State<Api>,
    uri: Uri,
    Names(names): Names<OfNetwork>,
    Params(how): Params<How>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    networks::check(&api.db, &names.network)?;
    let filter = WatchFilter {
        network: Some(names.network),
        ..WatchFilter::default()
    };
    open(api, filter, &how, uri.path(), &headers).await
}

/// Watches a table, also one that will be written to later.
#[utoipa::path(get, path = "/v1/networks/{network}/tables/{table}/watch", tag = "watch",
    operation_id = "watchTable",
    params(OfTable, How, LastEvent),
    responses((status = 200, body = ServerEvent, content_type = "text/event-stream",
        description = "Server-sent events, as of `/v1/watch` but for `member`."), (status = 404, response = Problem))
)]
pub(crate) async fn table(
    State(api): State<Api>,
    uri: Uri,
    Names(names): Names<OfTable>,
    Params(how): Params<How>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    networks::check(&api.db, &names.network)?;
    let filter = WatchFilter {
        network: Some(names.network),
        table: Some(names.table),
        ..WatchFilter::default()
    };
    open(api, filter, &how, uri.path(), &headers).await
}
