//! How requests become typed values: paths, queries, bodies and conditions, each refused with a problem.

use axum::extract::path::ErrorKind;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::HeaderMap;
use axum::http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use networkdb::{Key, NetworkId, TableName, VersionTag};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::error::Category;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::problem::Problem;
use crate::upload::{media_type, read};
use crate::value;

/// Largest body of a request about one thing: room for a value of 1 MiB in base64.
pub(crate) const BODY_BYTES_MAX: usize = 2 << 20;
/// Largest body of a batch.
pub(crate) const BATCH_BYTES_MAX: usize = 16 << 20;

/// A network in the path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfNetwork {
    /// Id of the network: 1 to 255 bytes of UTF-8, percent-encoded.
    #[param(value_type = String, min_length = 1, max_length = 255)]
    pub network: NetworkId,
}

/// A table in the path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct OfTable {
    /// Id of the network: 1 to 255 bytes of UTF-8, percent-encoded.
    #[param(value_type = String, min_length = 1, max_length = 255)]
    pub(crate) network: NetworkId,
    /// Name of the table: 1 to 255 bytes of UTF-8, percent-encoded.
    #[param(value_type = String, min_length = 1, max_length = 255)]
    pub(crate) table: TableName,
}

/// An entry in the path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct OfEntry {
    /// Id of the network: 1 to 255 bytes of UTF-8, percent-encoded.
    #[param(value_type = String, min_length = 1, max_length = 255)]
    pub(crate) network: NetworkId,
    /// Name of the table: 1 to 255 bytes of UTF-8, percent-encoded.
    #[param(value_type = String, min_length = 1, max_length = 255)]
    pub(crate) table: TableName,
    /// Key of the entry: 1 to 255 bytes of UTF-8, percent-encoded: `/` as `%2F`, the keys `.` and `..` as `%2E` and
    /// `%2E%2E`.
    #[param(value_type = String, min_length = 1, max_length = 255)]
    pub(crate) key: Key,
}

/// The names in a path.
#[derive(Debug)]
pub struct Names<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Names<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let names = Path::<T>::from_request_parts(parts, state).await;
        names.map(|Path(names)| Self(names)).map_err(unnameable)
    }
}

/// Says why a path names nothing. What is text, and yet no name, is too long, which is told as what it comes to: a schema counts
/// characters where the limit is of bytes, so it cannot be held against the request.
fn unnameable(rejection: PathRejection) -> Problem {
    if let PathRejection::FailedToDeserializePathParams(error) = &rejection
        && let ErrorKind::Message(message) | ErrorKind::DeserializeError { message, .. } =
            error.kind()
    {
        return Problem::name(message);
    }
    Problem::bad_request(rejection.body_text())
}

/// The parameters of a query; unknown ones are refused.
#[derive(Debug)]
pub struct Params<T>(pub T);

/// The query of an endpoint that takes no parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(params) = Query::<T>::try_from_uri(&parts.uri)
            .map_err(|error| Problem::bad_request(error.body_text()))?;
        Ok(Self(params))
    }
}

/// A body of JSON of at most `MAX` bytes.
#[derive(Debug)]
pub struct JsonBody<T, const MAX: usize = BODY_BYTES_MAX>(pub T);

impl<T: DeserializeOwned, S: Send + Sync, const MAX: usize> FromRequest<S> for JsonBody<T, MAX> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        if media_type(request.headers()) != "application/json" {
            return Err(Problem::media_type("the body must be application/json"));
        }
        let body = read(request.into_body(), MAX).await?;
        parse(&body).map(Self)
    }
}

/// Reads JSON: what is none is a bad request, what has the wrong shape is told apart from that.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => Problem::shape(error),
        Category::Io | Category::Syntax | Category::Eof => Problem::bad_request(error),
    })
}

/// A value as JSON carries it.
#[derive(Clone, Debug)]
pub(crate) struct Base64(pub(crate) Bytes);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = value::decode(text.as_bytes()).map_err(D::Error::custom)?;
        Ok(Self(bytes.into()))
    }
}

impl PartialSchema for Base64 {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "Bytes in base64, with padding: 1 MiB at most, 64 KiB by default.",
            ))
            .content_encoding("base64")
            .pattern(Some(
                "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
            ))
            .into()
    }
}

impl ToSchema for Base64 {}

/// On what condition an entry is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Condition {
    /// On none.
    Always,
    /// `If-None-Match: *`: there is no visible entry.
    Absent,
    /// `If-Match: *`: there is one.
    Present,
    /// `If-Match`: it has one of these versions.
    Versions(Vec<VersionTag>),
}

impl<S: Send + Sync> FromRequestParts<S> for Condition {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let matching = tags(&parts.headers, &IF_MATCH)?;
        let none = tags(&parts.headers, &IF_NONE_MATCH)?;
        match (matching, none) {
            (None, None) => Ok(Self::Always),
            (Some(Tags::Any), None) => Ok(Self::Present),
            (Some(Tags::Some(versions)), None) => Ok(Self::Versions(
                versions.into_iter().filter_map(Tag::strong).collect(),
            )),
            (None, Some(Tags::Any)) => Ok(Self::Absent),
            (None, Some(Tags::Some(_))) => Err(Problem::bad_request(
                "a write takes no If-None-Match but *, which creates",
            )),
            (Some(_), Some(_)) => Err(Problem::bad_request(
                "If-Match and If-None-Match exclude each other",
            )),
        }
    }
}

/// `*`, as the document describes it.
struct Star;

impl PartialSchema for Star {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(["*"]))
            .into()
    }
}

impl ToSchema for Star {}

/// `*` or entity tags, as the document describes them.
struct EntityTags;

impl PartialSchema for EntityTags {
    fn schema() -> RefOr<Schema> {
        let tags = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(r#"^(W/)?"[!#-~]{0,64}"(, ?(W/)?"[!#-~]{0,64}")*$"#));
        let either = AnyOfBuilder::new().item(Star::schema()).item(tags);
        RefOr::T(Schema::AnyOf(either.build()))
    }
}

impl ToSchema for EntityTags {}

/// What a client has already.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what tags reads")]
pub(crate) struct IfNoneMatch {
    /// Entity tags that the client has: with one of them it is told that nothing has changed.
    #[param(rename = "If-None-Match", inline, required = false)]
    if_none_match: EntityTags,
}

/// One entity tag of a condition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tag {
    is_weak: bool,
    /// None when it is not one of this server's, and matches nothing.
    version: Option<VersionTag>,
}

impl Tag {
    /// The version when the tag is compared strongly.
    fn strong(self) -> Option<VersionTag> {
        self.version.filter(|_| !self.is_weak)
    }
}

/// The entity tags of a condition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Tags {
    Any,
    Some(Vec<Tag>),
}

impl Tags {
    /// Whether a version is among them, compared weakly.
    pub(crate) fn have(&self, version: VersionTag) -> bool {
        match self {
            Self::Any => true,
            Self::Some(tags) => tags.iter().any(|tag| tag.version == Some(version)),
        }
    }
}

/// Reads the entity tags of a header, `None` when it is not there.
pub(crate) fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Problem> {
    let malformed = || Problem::bad_request(format!("{name} is no * and no list of entity tags"));
    let mut tags = Vec::new();
    for line in headers.get_all(name) {
        let line = line.to_str().map_err(|_| malformed())?.trim();
        if line == "*" {
            return Ok(Some(Tags::Any));
        }
        let mut rest = line;
        loop {
            let strong = rest.strip_prefix("W/").unwrap_or(rest);
            let is_weak = strong.len() < rest.len();
            let quoted = strong.strip_prefix('"').and_then(|it| it.split_once('"'));
            let (opaque, after) = quoted.ok_or_else(malformed)?;
            let version = opaque.parse().ok();
            tags.push(Tag { is_weak, version });
            let after = after.trim_start();
            if after.is_empty() {
                break;
            }
            rest = after.strip_prefix(',').ok_or_else(malformed)?.trim_start();
        }
    }
    Ok((!tags.is_empty()).then_some(Tags::Some(tags)))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn parsed(text: &str) -> Option<Tags> {
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, HeaderValue::from_str(text).unwrap());
        tags(&headers, &IF_MATCH).ok().flatten()
    }

    #[test]
    fn entity_tags_are_read_and_foreign_ones_match_nothing() {
        let version = VersionTag(7);
        assert_eq!(parsed("*"), Some(Tags::Any));
        let Some(Tags::Some(all)) = parsed(&format!("\"{version}\", W/\"{version}\",\"x,y\""))
        else {
            panic!("three tags");
        };
        let strong: Vec<_> = all.iter().filter_map(|tag| tag.strong()).collect();
        assert_eq!((all.len(), strong), (3, vec![version]));
        for text in ["", "x", "\"x", "\"a\",", "\"a\"\"b\"", "W/"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn json_of_the_wrong_shape_is_told_from_no_json() {
        assert_eq!(parse::<u8>(b"\"x\"").unwrap_err().status(), 422);
        assert_eq!(parse::<Vec<u8>>(b"[").unwrap_err().status(), 400);
    }
}
