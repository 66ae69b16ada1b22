//! The operators' page `/ui`: a few files, the same on every node, which a browser fills with what `/v1/` tells.
//!
//! The page runs beside text that any node of the cluster may have written. So it may load and ask nothing but this server,
//! and run nothing that is not one of these files (Content Security Policy); what it shows it writes as text.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest as _, Sha256};

use crate::v1::no_method;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

const INDEX: &str = include_str!("../ui/index.html");

/// What the page may do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, media type and text of every file.
const FILES: [(&str, &str, &str); 12] = [
    ("/ui", HTML, INDEX),
    ("/ui/", HTML, INDEX),
    ("/ui/style.css", CSS, include_str!("../ui/style.css")),
    ("/ui/theme.js", JAVASCRIPT, include_str!("../ui/theme.js")),
    ("/ui/app.js", JAVASCRIPT, include_str!("../ui/app.js")),
    ("/ui/api.js", JAVASCRIPT, include_str!("../ui/api.js")),
    ("/ui/dom.js", JAVASCRIPT, include_str!("../ui/dom.js")),
    ("/ui/value.js", JAVASCRIPT, include_str!("../ui/value.js")),
    (
        "/ui/cluster.js",
        JAVASCRIPT,
        include_str!("../ui/cluster.js"),
    ),
    (
        "/ui/entries.js",
        JAVASCRIPT,
        include_str!("../ui/entries.js"),
    ),
    ("/ui/route.js", JAVASCRIPT, include_str!("../ui/route.js")),
    ("/ui/live.js", JAVASCRIPT, include_str!("../ui/live.js")),
];

/// Makes the routes of the page.
pub(crate) fn router() -> Router {
    let mut router = Router::new();
    for (path, media_type, text) in FILES {
        let etag = etag(text);
        let send = async move |headers: HeaderMap| file(&headers, media_type, &etag, text);
        router = router.route(path, get(send));
    }
    router.method_not_allowed_fallback(no_method)
}

/// Answers with a file, or that the browser has it.
fn file(
    headers: &HeaderMap,
    media_type: &'static str,
    etag: &HeaderValue,
    text: &'static str,
) -> Response {
    let fixed = [
        (CONTENT_TYPE, media_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // Kept, and asked about each time: another version of the program may answer next.
        (CACHE_CONTROL, "no-cache"),
    ];
    let fixed: [(HeaderName, HeaderValue); 5] =
        fixed.map(|(name, value)| (name, HeaderValue::from_static(value)));
    let etag_header = [(ETAG, etag.clone())];
    if has(headers, etag) {
        return (StatusCode::NOT_MODIFIED, fixed, etag_header).into_response();
    }
    (fixed, etag_header, text).into_response()
}

/// Returns the entity tag of a text, in quotes.
fn etag(text: &str) -> HeaderValue {
    let hash = Sha256::digest(text.as_bytes());
    let digits: String = hash
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    HeaderValue::from_str(&format!("\"{digits}\"")).expect("quotes and hex digits")
}

/// Whether the browser says that it has the file of this tag.
fn has(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let lists = headers.get_all(IF_NONE_MATCH).iter();
    let mut tags = lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim);
    tags.any(|tag| {
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag.as_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browser_with_the_file_is_told_so() {
        let tag = etag("text");
        let with = |list: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, HeaderValue::from_str(list).unwrap());
            has(&headers, &tag)
        };
        let tag = tag.to_str().unwrap();
        for list in [tag, "*", &format!("W/{tag}"), &format!("\"x\", {tag}")] {
            assert!(with(list), "{list}");
        }
        for list in ["", "\"x\"", tag.trim_matches('"')] {
            assert!(!with(list), "{list}");
        }
        assert_ne!(etag("text"), etag("other"));
    }

    #[test]
    fn page_names_only_its_own_files_and_runs_nothing_inline() {
        for (path, media_type, text) in FILES {
            let names = text
                .split("\"/ui/")
                .skip(1)
                .chain(text.split("from \"./").skip(1));
            for name in names.filter_map(|rest| rest.split('"').next()) {
                let is_there = FILES.iter().any(|file| file.0 == format!("/ui/{name}"));
                assert!(is_there, "{path} names {name}");
            }
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                assert!(!text.contains(word), "{path} has {word}");
            }
            if media_type == HTML {
                for word in ["<style", " style=", " onclick=", "<script>"] {
                    assert!(!text.contains(word), "{path} has {word}");
                }
            }
        }
    }
}
