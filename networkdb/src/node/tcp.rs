//! Connections: hello, then frames, sealed when there are keys. One reading and one writing task each.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::driver::{Event, now};
use crate::engine::StreamId;
use crate::keyring::Keyring;
use crate::wire::frame::{HELLO_BYTES, Hello, SealError, StreamSeal};

/// How long connecting and the hello may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
/// Incoming connections before their hello is done; further ones are closed at once.
const HELLOS_MAX: usize = 64;
/// Frames that wait for a connection's writer. The engine keeps no more than this many on their way.
pub(crate) const FRAMES_WAITING: usize = 16;

/// Bytes of frames that have arrived and wait for the engine, of all connections. When it is reached, connections are not
/// read any further, and their senders wait. Above the largest frame.
const UNHANDLED_BYTES: u32 = 16 << 20;

/// Limits what has arrived and waits for the engine.
pub(crate) fn unhandled() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(UNHANDLED_BYTES as usize))
}

/// What every connection needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub cluster: Arc<str>,
    /// The address that the listener is bound to.
    pub bound: IpAddr,
    pub keyring: Arc<RwLock<Option<Keyring>>>,
    pub events: mpsc::Sender<Event>,
    pub refusals: Arc<super::Refusals>,
    pub unhandled: Arc<Semaphore>,
}

/// A connection's failure in words for the log and for whoever waits for a join.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("no answer within {HELLO_TIMEOUT:?}")]
    Timeout,
}

impl Context {
    fn keyring(&self) -> Option<Keyring> {
        self.keyring.read().clone()
    }
}

/// Accepts connections until the driver is gone.
pub(crate) async fn accept(listener: TcpListener, context: Context) {
    let hellos = Arc::new(Semaphore::new(HELLOS_MAX));
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = context.events.closed() => return,
        };
        let Ok((socket, peer)) = accepted else {
            // Out of descriptors: wait for some connection to end instead of spinning.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&hellos).try_acquire_owned() else {
            continue;
        };
        number += 1;
        let (id, context) = (StreamId::Incoming(number), context.clone());
        tokio::spawn(async move {
            let answered = timeout(HELLO_TIMEOUT, answer(socket, &context)).await;
            drop(permit);
            match answered {
                Ok(Ok((reader, writer, seals))) => {
                    incoming(id, peer, (reader, writer, seals), context).await;
                }
                Ok(Err(ConnectionError::Seal(error))) => context.refusals.report(peer, error),
                Ok(Err(ConnectionError::Io(_) | ConnectionError::Timeout)) | Err(_) => {}
            }
        });
    }
}

type Seals = (StreamSeal, StreamSeal);

async fn answer(
    mut socket: TcpStream,
    context: &Context,
) -> Result<(OwnedReadHalf, OwnedWriteHalf, Seals), ConnectionError> {
    socket.set_nodelay(true)?;
    let mut hello = [0; HELLO_BYTES];
    socket.read_exact(&mut hello).await?;
    let nonce = super::random_bytes();
    let keyring = context.keyring();
    let opening = Hello::from_bytes(hello);
    match Hello::answer(&opening, &context.cluster, keyring.as_ref(), nonce) {
        Ok((answer, outgoing, incoming)) => {
            socket.write_all(answer.as_bytes()).await?;
            let (reader, writer) = socket.into_split();
            Ok((reader, writer, (outgoing, incoming)))
        }
        Err(error) => {
            socket.write_all(Hello::refusing(error).as_bytes()).await?;
            Err(error.into())
        }
    }
}

async fn incoming(
    id: StreamId,
    peer: SocketAddr,
    (reader, writer, (outgoing, incoming)): (OwnedReadHalf, OwnedWriteHalf, Seals),
    context: Context,
) {
    let (frames, waiting) = mpsc::channel(FRAMES_WAITING);
    let accepted = Event::StreamAccepted {
        stream: id,
        peer,
        frames,
    };
    if context.events.send(accepted).await.is_ok() {
        run(id, (reader, incoming), (writer, outgoing), waiting, context).await;
    }
}

/// Connects, says hello and runs the stream; its end is reported in every case.
pub(crate) async fn connect(
    id: StreamId,
    to: SocketAddr,
    waiting: mpsc::Receiver<Bytes>,
    context: Context,
) {
    let opened = timeout(HELLO_TIMEOUT, open(to, &context)).await;
    let error = match opened {
        Ok(Ok((reader, writer, (outgoing, incoming)))) => {
            run(id, (reader, incoming), (writer, outgoing), waiting, context).await;
            return;
        }
        Ok(Err(error)) => error,
        Err(_) => ConnectionError::Timeout,
    };
    if let ConnectionError::Seal(error) = error {
        context.refusals.report(to, error);
    }
    let closed = Event::StreamClosed {
        stream: id,
        error: Some(error.to_string()),
    };
    // The driver is gone when this fails, and with it whoever would want to know.
    drop(context.events.send(closed).await);
}

async fn open(
    to: SocketAddr,
    context: &Context,
) -> Result<(OwnedReadHalf, OwnedWriteHalf, Seals), ConnectionError> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Others see the address that this node was told to use, and firewalls may depend on it.
    if !context.bound.is_unspecified() && context.bound.is_ipv4() == to.is_ipv4() {
        socket.bind(SocketAddr::new(context.bound, 0))?;
    }
    let mut socket = socket.connect(to).await?;
    socket.set_nodelay(true)?;
    let keyring = context.keyring();
    let nonce = super::random_bytes();
    let opening = Hello::opening(&context.cluster, keyring.as_ref(), nonce);
    socket.write_all(opening.as_bytes()).await?;
    let mut answer = [0; HELLO_BYTES];
    socket.read_exact(&mut answer).await?;
    let seals = opening.answered(
        &Hello::from_bytes(answer),
        &context.cluster,
        keyring.as_ref(),
    )?;
    let (reader, writer) = socket.into_split();
    Ok((reader, writer, seals))
}

/// Reads and writes frames until one side ends the stream, and reports the end.
async fn run(
    id: StreamId,
    (reader, incoming): (OwnedReadHalf, StreamSeal),
    (writer, outgoing): (OwnedWriteHalf, StreamSeal),
    waiting: mpsc::Receiver<Bytes>,
    context: Context,
) {
    let writing = tokio::spawn(write(id, writer, outgoing, waiting, context.events.clone()));
    let error = read(id, reader, incoming, &context).await.err();
    writing.abort();
    if let Some(ConnectionError::Seal(error)) = &error {
        tracing::debug!(?id, %error, "stream broken");
    }
    let closed = Event::StreamClosed {
        stream: id,
        error: error.map(|error| error.to_string()),
    };
    // The driver is gone when this fails, and with it whoever would want to know.
    drop(context.events.send(closed).await);
}

async fn read(
    id: StreamId,
    mut reader: OwnedReadHalf,
    mut seal: StreamSeal,
    context: &Context,
) -> Result<(), ConnectionError> {
    while let Some(body) = read_body(&mut reader, &seal).await? {
        let payload = seal.open(body)?;
        let bytes = u32::try_from(payload.len()).unwrap_or(UNHANDLED_BYTES);
        let permit = Arc::clone(&context.unhandled).acquire_many_owned(bytes);
        let permit = permit.await.expect("the semaphore is never closed");
        let frame = Event::StreamFrame {
            stream: id,
            payload,
            at: now(),
            permit,
        };
        if context.events.send(frame).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Reads one frame's body; `None` at the end of the stream. Memory grows with what arrives, not with what is announced.
async fn read_body(
    reader: &mut (impl AsyncRead + Unpin),
    seal: &StreamSeal,
) -> Result<Option<Vec<u8>>, ConnectionError> {
    let mut length = [0; 4];
    if reader.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut length[1..]).await?;
    let bytes = seal.body_bytes(length)?;
    let mut body = Vec::new();
    reader.take(bytes as u64).read_to_end(&mut body).await?;
    if body.len() < bytes {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(body))
}

/// Writes frames until the driver drops its end, then shuts the stream down.
async fn write(
    id: StreamId,
    mut writer: OwnedWriteHalf,
    mut seal: StreamSeal,
    mut waiting: mpsc::Receiver<Bytes>,
    events: mpsc::Sender<Event>,
) {
    while let Some(payload) = waiting.recv().await {
        let frame = seal.seal(&payload);
        if writer.write_all(&frame).await.is_err() {
            // The reading side sees the broken connection too and reports it.
            return;
        }
        if events.send(Event::FrameSent { stream: id }).await.is_err() {
            return;
        }
    }
    // The other side has closed already when this fails.
    drop(writer.shutdown().await);
}
