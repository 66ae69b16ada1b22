//! What a client is told when something is refused: a problem document (RFC 9457), the same shape for every error.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use networkdb::node::{Closed, JoinError, ReadError};
use networkdb::{NetworkError, NetworkId, WriteError};
use serde::Serialize;
use utoipa::{ToResponse, ToSchema};

use crate::upload::UploadError;

/// The media type of a problem document.
const PROBLEM: &str = "application/problem+json";

/// After how many seconds a client may try again what there was no room for.
const RETRY_SECONDS: &str = "5";

/// What went wrong, after RFC 9457.
#[derive(Clone, Debug, Serialize, ToSchema, ToResponse)]
#[response(
    description = "A problem; its type says which.",
    content_type = "application/problem+json"
)]
pub struct Problem {
    /// Names the kind of problem, for programs: a URN, or `about:blank` when the status says all.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The kind of problem in words.
    title: &'static str,
    /// The status of the response, or of one write of a batch.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What happened to this very request.
    detail: String,
    /// Why none of the members could be joined.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    failures: Vec<FailedMember>,
}

/// A member that did not answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct FailedMember {
    /// The member as it was given.
    member: String,
    /// What happened.
    reason: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident, $status:ident, $urn:literal, $title:literal;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(detail: impl ToString) -> Self {
            Self {
                kind: concat!("urn:networkdb:problem:", $urn),
                title: $title,
                status: StatusCode::$status.as_u16(),
                detail: detail.to_string(),
                failures: Vec::new(),
            }
        })*
    };
}

impl Problem {
    kinds! {
        /// The request cannot be understood.
        bad_request, BAD_REQUEST, "bad-request", "The request cannot be understood";
        /// No endpoint has the path.
        unknown_path, NOT_FOUND, "unknown-path", "There is no such endpoint";
        /// A name in the request is too long, or too short, to be that of anything.
        name, NOT_FOUND, "name", "Nothing can have that name";
        /// This node is not attached to the network.
        not_attached, NOT_FOUND, "not-attached", "This node is not attached to the network";
        /// No visible entry has the key.
        unknown_entry, NOT_FOUND, "unknown-entry", "There is no such entry";
        /// The entry was deleted.
        deleted_entry, NOT_FOUND, "deleted-entry", "The entry was deleted";
        /// The owner of the entry failed.
        hidden_entry, NOT_FOUND, "hidden-entry", "The owner of the entry has failed";
        /// The path has no such method.
        method, METHOD_NOT_ALLOWED, "method-not-allowed", "The endpoint has no such method";
        /// The body did not arrive.
        timeout, REQUEST_TIMEOUT, "timeout", "The body did not arrive in time";
        /// A visible entry has the key.
        exists, CONFLICT, "exists", "The entry exists";
        /// A limit is reached.
        limit, CONFLICT, "limit", "A limit of the configuration is reached";
        /// The condition of the request does not hold.
        precondition, PRECONDITION_FAILED, "precondition-failed", "The condition does not hold";
        /// The body or the value is too large.
        too_large, PAYLOAD_TOO_LARGE, "too-large", "The body is too large";
        /// The body is of a type that is not taken.
        media_type, UNSUPPORTED_MEDIA_TYPE, "media-type", "The media type is not supported";
        /// The body is JSON of the wrong shape.
        shape, UNPROCESSABLE_ENTITY, "shape", "The body does not have the right shape";
        /// Only another node may write the key.
        not_owner, FORBIDDEN, "not-owner", "The key belongs to another node";
        /// There is no room for one more of them.
        busy, SERVICE_UNAVAILABLE, "busy", "There is no room for this at the moment";
        /// None of the members answered: the members that were named are at fault, not this server.
        join_failed, CONFLICT, "join-failed", "None of the members answered";
        /// The network has no data path on this node.
        no_data_path, CONFLICT, "no-data-path", "The network has no data path on this node";
        /// The kernel refused.
        kernel, INTERNAL_SERVER_ERROR, "kernel", "The kernel refused";
        /// The node is closed.
        closed, SERVICE_UNAVAILABLE, "closed", "The node is closed";
    }

    /// Says why a request did not get as far as an endpoint.
    #[must_use]
    pub fn refused(status: StatusCode, detail: String) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail,
            failures: Vec::new(),
        }
    }

    /// Says of a network that this node is not attached to it.
    #[must_use]
    pub fn no_network(network: &NetworkId) -> Self {
        Self::not_attached(format!(
            "this node is not attached to network {network}; PUT /v1/networks/{{network}} attaches it"
        ))
    }

    /// Says why nothing is visible under a key.
    pub(crate) fn unread(error: ReadError) -> Self {
        match error {
            ReadError::Deleted => Self::deleted_entry(error),
            ReadError::Hidden => Self::hidden_entry(error),
            ReadError::Absent | _ => Self::unknown_entry(error),
        }
    }

    /// Turns what a condition ruled out into a failed condition.
    pub(crate) fn conditional(self) -> Self {
        let is_ruled_out = self.kind.ends_with(":exists") || self.kind.ends_with(":unknown-entry");
        if is_ruled_out {
            return Self::precondition(self.detail);
        }
        self
    }

    /// Returns the status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Exists { .. } => Self::exists(error),
            WriteError::Missing { .. } => Self::unknown_entry(error),
            WriteError::Changed { .. } => Self::precondition(error),
            WriteError::NotAttached { network } => Self::no_network(&network),
            WriteError::ValueTooLarge { .. } => Self::too_large(error),
            WriteError::NotOwner { .. } => Self::not_owner(error),
            WriteError::Full { .. } => Self::limit(error),
            WriteError::Closed | _ => Self::closed(error),
        }
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::TooLarge { .. } => Self::too_large(error),
            UploadError::TooSlow => Self::timeout(error),
            UploadError::Broken(_) => Self::bad_request(error),
        }
    }
}

impl From<NetworkError> for Problem {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::AlreadyAttached { .. } => Self::exists(error),
            NetworkError::Unknown { .. } => Self::not_attached(error),
            NetworkError::Full { .. } => Self::limit(error),
            NetworkError::Closed | _ => Self::closed(error),
        }
    }
}

impl From<Closed> for Problem {
    fn from(error: Closed) -> Self {
        Self::closed(error)
    }
}

impl From<JoinError> for Problem {
    fn from(error: JoinError) -> Self {
        let problem = Self::join_failed(&error);
        let failures = error.failures.into_iter();
        let failed = |failure: networkdb::node::JoinFailure| FailedMember {
            member: failure.member,
            reason: failure.reason,
        };
        Self {
            failures: failures.map(failed).collect(),
            ..problem
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = axum::Json(self).into_response();
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_condition_rules_out_becomes_a_failed_condition() {
        for problem in [Problem::exists("e"), Problem::unknown_entry("e")] {
            let problem = problem.conditional();
            assert_eq!(problem.status(), StatusCode::PRECONDITION_FAILED);
            assert_eq!(problem.detail, "e");
        }
        for (problem, status) in [
            (Problem::not_attached("n"), StatusCode::NOT_FOUND),
            (Problem::limit("l"), StatusCode::CONFLICT),
        ] {
            assert_eq!(problem.conditional().status(), status);
        }
    }
}
