//! Certificates for tests of TLS.

use std::path::PathBuf;

use diagnostic::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// A root that signs, and the files that it has made.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a root");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("root"), issuer.pem()).expect("a writable file");
        Self { dir, issuer }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a certificate for localhost and its key, as files `NAME.cert` and `NAME.key`.
    pub(crate) fn sign(&self, name: &str) {
        let params = CertificateParams::new(vec!["localhost".into()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("it is signed");
        std::fs::write(self.path(&format!("{name}.cert")), certificate.pem()).expect("writable");
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("writable");
    }

    pub(crate) fn files(&self, client_roots: Option<PathBuf>) -> TlsFiles {
        TlsFiles {
            certificate: self.path("server.cert"),
            key: self.path("server.key"),
            client_roots,
        }
    }
}
