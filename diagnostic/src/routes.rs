//! Which path is answered by which handler, and which paths are sent elsewhere first.
//!
//! A path matches whole and exactly, `/ready/` is not `/ready`. One that is not clean (`//ready`, `/x/../ready`) is
//! redirected to its clean form, as Go's router does.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::failure::Failure;
use crate::params::Params;
use crate::reply::Reply;

/// The paths that every server answers; nobody else can register them.
pub(crate) const BUILT_IN: [&str; 15] = [
    "/",
    "/clusterpeers",
    "/createentry",
    "/deleteentry",
    "/getentry",
    "/gettable",
    "/help",
    "/join",
    "/joinnetwork",
    "/leave",
    "/leavenetwork",
    "/networkpeers",
    "/networkstats",
    "/ready",
    "/updateentry",
];

/// What a handler answers.
pub(crate) type Handled = Result<Reply, Failure>;

/// What comes of a call of a handler. Most have their answer at once.
pub(crate) enum Handling {
    Now(Handled),
    Later(Pin<Box<dyn Future<Output = Handled> + Send>>),
}

/// A request as handlers see it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The parameters; those that the route requires are present.
    pub params: Params,
    /// The address of the client.
    pub remote: SocketAddr,
    /// The path, decoded, when it is none that is registered.
    pub(crate) unknown_path: Option<Vec<u8>>,
    /// The registered paths.
    pub(crate) routes: Routes,
}

/// A path with its handler.
pub struct Route {
    path: String,
    template: &'static str,
    /// The parameters that the template names.
    required: Vec<&'static str>,
    is_text_only: bool,
    is_change: bool,
    handler: Box<dyn Fn(Request) -> Handling + Send + Sync>,
}

/// The registered paths of one server or of several; clones are the same registry.
#[derive(Clone, Debug, Default)]
pub struct Routes(Arc<RwLock<BTreeMap<String, Arc<Route>>>>);

/// The path has a handler, which keeps it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("path {path} is registered already")]
pub struct PathTaken {
    path: String,
}

impl Request {
    /// Returns the path that was asked for, when the route of all other paths is called.
    pub(crate) fn other_path(&self) -> Vec<u8> {
        let path = self.unknown_path.clone();
        path.unwrap_or_else(|| b"/".into())
    }
}

impl Route {
    /// Makes a route that requires no parameter.
    pub fn new<F, A>(path: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Reply, Failure>> + Send + 'static,
    {
        Self::handled(path, move |request| {
            Handling::Later(Box::pin(handler(request)))
        })
    }

    /// Makes a route whose handler may have the answer at once.
    pub(crate) fn handled(
        path: impl Into<String>,
        handler: impl Fn(Request) -> Handling + Send + Sync + 'static,
    ) -> Self {
        Self {
            path: path.into(),
            template: "",
            required: Vec::new(),
            is_text_only: false,
            is_change: false,
            handler: Box::new(handler),
        }
    }

    /// Requires the parameters of a template such as `tname=table_name&nid=network_id`, which is also the usage shown
    /// when one of them is missing.
    #[must_use]
    pub fn requires(self, template: &'static str) -> Self {
        let parts = template.split('&').filter(|part| !part.is_empty());
        let name = |part: &'static str| part.split_once('=').map_or(part, |(name, _)| name);
        Self {
            template,
            required: parts.map(name).collect(),
            ..self
        }
    }

    /// Answers in text even when JSON is asked for.
    #[must_use]
    pub fn text_only(self) -> Self {
        Self {
            is_text_only: true,
            ..self
        }
    }

    /// Says that a request changes something, which a page of another site may not ask for and a read-only server refuses.
    #[must_use]
    pub fn changes(self) -> Self {
        Self {
            is_change: true,
            ..self
        }
    }

    /// Returns the path.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns true when a request changes something.
    pub(crate) fn is_change(&self) -> bool {
        self.is_change
    }

    /// Returns true when `json` is to be ignored.
    pub(crate) fn is_text_only(&self) -> bool {
        self.is_text_only
    }

    /// Returns the word for this route in the log.
    pub(crate) fn method(&self) -> &str {
        match self.path.as_str() {
            "/" => "unknown",
            path => path.trim_start_matches('/'),
        }
    }

    /// Calls the handler, unless a parameter is missing.
    pub(crate) fn call(&self, request: Request) -> Handling {
        let is_missing = |name: &&str| request.params.get(name).is_none();
        if self.required.iter().any(is_missing) {
            let usage = format!("{}?{}", self.path, self.template);
            return Handling::Now(Ok(Reply::missing(usage)));
        }
        (self.handler)(request)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("path", &self.path)
            .field("template", &self.template)
            .finish_non_exhaustive()
    }
}

impl Routes {
    /// Adds a route, which is answered and listed in `/help` from then on.
    pub fn register(&self, route: Route) -> Result<(), PathTaken> {
        let path = route.path.clone();
        let mut routes = self.0.write();
        if BUILT_IN.contains(&path.as_str()) || routes.contains_key(&path) {
            return Err(PathTaken { path });
        }
        routes.insert(path, Arc::new(route));
        Ok(())
    }

    /// Returns the registered paths, sorted.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.0.read().keys().cloned().collect()
    }

    /// Adds a route of the server's own.
    pub(crate) fn mount(&self, route: Route) {
        self.0.write().insert(route.path.clone(), Arc::new(route));
    }

    /// Returns the route of a path, the one of `/` for an unknown path.
    pub(crate) fn find(&self, raw_path: &str, decoded_path: &[u8]) -> Option<Arc<Route>> {
        let routes = self.0.read();
        let slashes = |path: &[u8]| path.iter().filter(|&&byte| byte == b'/').count();
        let path = if decoded_path == raw_path.as_bytes() {
            Some(raw_path)
        } else if slashes(decoded_path) == slashes(raw_path.as_bytes()) {
            str::from_utf8(decoded_path).ok()
        } else {
            // An escaped slash is part of a name and never separates.
            None
        };
        let route = path.and_then(|path| routes.get(path));
        route.or_else(|| routes.get("/")).cloned()
    }
}

/// Whether a path is as [`cleaned`] would make it. Nearly all are, and need no second path to be made: a segment that has to
/// go is empty or begins with a dot.
fn is_clean(path: &str) -> bool {
    let mut pairs = path.as_bytes().windows(2);
    let is_suspect = !path.starts_with('/') || pairs.any(|pair| pair == b"//" || pair == b"/.");
    !is_suspect || clean_form(path) == path
}

/// Returns the clean form of a path that has empty, `.` or `..` segments; none when it is clean.
pub(crate) fn cleaned(path: &str) -> Option<String> {
    (!is_clean(path)).then(|| clean_form(path))
}

fn clean_form(path: &str) -> String {
    let mut kept = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            name => kept.push(name),
        }
    }
    let mut clean = format!("/{}", kept.join("/"));
    if path.ends_with('/') && !kept.is_empty() {
        clean.push('/');
    }
    clean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(path: &str) -> Route {
        let name = path.to_owned();
        Route::new(path, move |_| {
            std::future::ready(Ok(Reply::info(name.clone())))
        })
    }

    fn found(routes: &Routes, raw: &str) -> Option<String> {
        let decoded = crate::params::decode_path(raw.as_bytes()).unwrap();
        routes.find(raw, &decoded).map(|route| route.path.clone())
    }

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (path, clean) in [
            ("//ready", "/ready"),
            ("/x/../ready", "/ready"),
            ("/ready/.", "/ready"),
            ("/ready/..", "/"),
            ("/../..", "/"),
            ("//", "/"),
            ("/a//b/", "/a/b/"),
            ("/a/./", "/a/"),
        ] {
            assert_eq!(cleaned(path).as_deref(), Some(clean), "{path}");
        }
        for path in ["/", "/ready", "/ready/", "/a/.b/..c", "/%2e%2e"] {
            assert_eq!(cleaned(path), None, "{path}");
        }
    }

    #[test]
    fn path_matches_whole_and_decoded() {
        let routes = Routes::default();
        for path in ["/", "/ready", "/a/b"] {
            routes.mount(route(path));
        }
        assert_eq!(found(&routes, "/ready").unwrap(), "/ready");
        assert_eq!(found(&routes, "/%72eady").unwrap(), "/ready");
        assert_eq!(found(&routes, "/a/b").unwrap(), "/a/b");
        for unknown in [
            "/ready/",
            "/ready%2F",
            "/a%2Fb",
            "/Ready",
            "/nosuch",
            "/%ff",
        ] {
            assert_eq!(found(&routes, unknown).unwrap(), "/", "{unknown}");
        }
    }

    #[test]
    fn a_path_is_registered_once_and_built_in_ones_never() {
        let routes = Routes::default();
        assert!(routes.register(route("/myip")).is_ok());
        assert_eq!(
            routes.register(route("/myip")).unwrap_err().to_string(),
            "path /myip is registered already"
        );
        assert!(routes.register(route("/help")).is_err());
        assert_eq!(routes.paths(), ["/myip"]);
    }

    proptest! {
        #[test]
        fn clean_path_stays_as_it_is(path in "/[a./]{0,12}") {
            let clean = cleaned(&path).unwrap_or(path);
            prop_assert!(clean.starts_with('/') && !clean.contains("//"));
            prop_assert_eq!(cleaned(&clean), None);
        }

        #[test]
        fn what_is_clean_is_its_own_clean_form(path in "/?[a./]{0,12}") {
            prop_assert_eq!(is_clean(&path), clean_form(&path) == path);
        }
    }
}
