//! A server that speaks TLS and asks for certificates.

mod authority;

use diagnostic::{Client, ClientError, ClientFiles, Running, Server, Tls, TlsError, TlsFiles};
use networkdb::node::{NetworkDb, NodeConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::authority::Authority;

async fn serve(tls: Tls) -> (Running, NetworkDb) {
    let config = NodeConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        ..NodeConfig::default()
    };
    let db = NetworkDb::start(config).await.expect("the node starts");
    let server = Server::bind(([127, 0, 0, 1], 0).into())
        .await
        .expect("a free port");
    (server.with_tls(tls).serve(db.clone()), db)
}

/// Asks `/ready`, with the certificate of that name if one is given.
async fn ask(
    server: &Running,
    authority: &Authority,
    with: Option<&str>,
) -> Result<String, ClientError> {
    let file = |name: &str, end| authority.path(&format!("{name}.{end}"));
    let files = ClientFiles {
        roots: authority.path("root"),
        identity: with.map(|name| (file(name, "cert"), file(name, "key"))),
    };
    let client = Client::new("localhost", server.local_addr().port());
    let client = client.with_tls(&files).expect("the files fit");
    Ok(client.get("/ready").await?.text())
}

#[tokio::test]
async fn only_clients_with_a_certificate_of_the_roots_are_answered() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for name in ["server", "client"] {
        authority.sign(name);
    }
    stranger.sign("stranger");
    for end in ["cert", "key"] {
        let name = format!("stranger.{end}");
        std::fs::copy(stranger.path(&name), authority.path(&name)).unwrap();
    }
    let files = authority.files(Some(authority.path("root")));
    let (server, db) = serve(Tls::load(&files).unwrap()).await;
    let reply = ask(&server, &authority, Some("client")).await.unwrap();
    assert!(reply.ends_with("OK\nOK"), "{reply}");
    assert!(ask(&server, &authority, None).await.is_err());
    assert!(ask(&server, &authority, Some("stranger")).await.is_err());
    // Without roots everybody is.
    server.set_tls(Some(Tls::load(&authority.files(None)).unwrap()));
    let reply = ask(&server, &authority, None).await.unwrap();
    assert!(reply.ends_with("OK\nOK"), "{reply}");
    db.close().await;
}

#[tokio::test]
async fn clients_that_speak_no_tls_keep_nobody_out() {
    let authority = Authority::new();
    authority.sign("server");
    let (server, db) = serve(Tls::load(&authority.files(None)).unwrap()).await;
    let mut plain = TcpStream::connect(server.local_addr()).await.unwrap();
    plain
        .write_all(b"GET /ready HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut reply = Vec::new();
    drop(plain.read_to_end(&mut reply).await);
    assert!(!reply.starts_with(b"HTTP"), "{reply:?}");
    let _silent = TcpStream::connect(server.local_addr()).await.unwrap();
    assert!(ask(&server, &authority, None).await.is_ok());
    db.close().await;
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let authority = Authority::new();
    authority.sign("server");
    let error = |files: &TlsFiles| Tls::load(files).unwrap_err().to_string();
    let mut files = authority.files(Some(authority.path("missing")));
    assert!(error(&files).contains("missing"));
    std::fs::write(authority.path("empty"), "").unwrap();
    files.client_roots = Some(authority.path("empty"));
    assert!(matches!(Tls::load(&files), Err(TlsError::Empty { .. })));
    authority.sign("other");
    let mut files = authority.files(None);
    files.key = authority.path("other.key");
    assert!(error(&files).starts_with("TLS: "), "{}", error(&files));
    files.key = authority.path("server.cert");
    assert!(error(&files).contains("server.cert"));
}
