//! The endpoint that makes many writes in one request.

use axum::extract::State;
use axum::http::StatusCode;
use networkdb::engine::WriteKind;
use networkdb::node::{Accepted, Write, WriteAction};
use networkdb::{Key, VersionTag};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{PartialSchema, ToSchema};

use super::extract::{BATCH_BYTES_MAX, Base64, JsonBody, Names, OfTable};
use super::problem::Problem;
use super::{Api, Json, networks};

/// Writes that one request may make.
const WRITES_MAX: usize = 10_000;

/// Writes, made in their order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch {
    /// The writes.
    #[schema(max_items = 10000)]
    writes: Vec<BatchWrite>,
}

/// One write of a batch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BatchWrite {
    /// What is to be done.
    op: Op,
    /// The key: 1 to 255 bytes of UTF-8. A write with another one is refused, and the others are made.
    key: String,
    /// The value; a delete takes none.
    value: Option<Base64>,
    /// Of an update or delete: the version that the entry must have.
    version: Option<Version>,
}

/// What a write of a batch does.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Op {
    /// Creates an entry.
    Create,
    /// Updates one that is there.
    Update,
    /// Updates or creates one.
    Put,
    /// Deletes one.
    Delete,
}

/// A version as a client names it.
#[derive(Clone, Copy, Debug)]
struct Version(VersionTag);

/// What came of the writes of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Results {
    /// One for each write, in their order.
    results: Vec<Outcome>,
    /// How many were made.
    accepted: usize,
}

/// What came of one write.
#[derive(Debug, Serialize, ToSchema)]
struct Outcome {
    /// What a request of its own would have been answered.
    #[schema(minimum = 200, maximum = 599)]
    status: u16,
    /// The version that the entry has by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false, pattern = "^[0-9a-f]{32}$")]
    version: Option<String>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    problem: Option<Problem>,
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl PartialSchema for Version {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("A version, as entries tell it."))
            // In some languages the pattern alone would let a line break through at the end.
            .max_length(Some(32))
            .pattern(Some("^[0-9a-f]{32}$"))
            .into()
    }
}

impl ToSchema for Version {}

impl BatchWrite {
    /// Returns the key and what is to be done, or why that makes no sense.
    fn action(self) -> Result<(Key, WriteAction), Problem> {
        let Self {
            op,
            key,
            value,
            version,
        } = self;
        let key = Key::new(key).map_err(Problem::name)?;
        let value = value.map(|value| value.0);
        let versions = version.map(|version| vec![version.0]);
        let action = match (op, value, versions) {
            (Op::Create, Some(value), None) => WriteAction::Create(value),
            (Op::Put, Some(value), None) => WriteAction::Put(value),
            (Op::Update, Some(value), None) => WriteAction::Update(value),
            (Op::Update, Some(value), Some(versions)) => WriteAction::UpdateIf { value, versions },
            (Op::Delete, None, None) => WriteAction::Delete,
            (Op::Delete, None, Some(versions)) => WriteAction::DeleteIf { versions },
            (Op::Create | Op::Put, _, Some(_)) => {
                return Err(Problem::shape("only an update or delete takes a version"));
            }
            (Op::Create | Op::Put | Op::Update, None, _) => {
                return Err(Problem::shape("the write takes a value"));
            }
            (Op::Delete, Some(_), _) => return Err(Problem::shape("a delete takes no value")),
        };
        Ok((key, action))
    }
}

impl From<Result<Accepted, Problem>> for Outcome {
    fn from(result: Result<Accepted, Problem>) -> Self {
        match result {
            Ok(accepted) => Self {
                status: match accepted.kind {
                    WriteKind::Create => StatusCode::CREATED,
                    WriteKind::Update => StatusCode::OK,
                    WriteKind::Delete => StatusCode::NO_CONTENT,
                }
                .as_u16(),
                version: (accepted.kind != WriteKind::Delete)
                    .then(|| accepted.version.tag().to_string()),
                problem: None,
            },
            Err(problem) => Self {
                status: problem.status().as_u16(),
                version: None,
                problem: Some(problem),
            },
        }
    }
}

/// Makes many writes in their order, each answered by itself; a refused one does not keep the others back. It is no
/// transaction: other writes may come between.
#[utoipa::path(post, path = "/v1/networks/{network}/tables/{table}/batch", tag = "entries",
    operation_id = "writeBatch", params(OfTable), request_body = Batch, responses(
    (status = 200, description = "What came of each write.", body = Results),
    (status = 404, response = Problem), (status = 408, response = Problem), (status = 413, response = Problem),
    (status = 415, response = Problem), (status = 422, response = Problem),
))]
pub(crate) async fn write(
    State(api): State<Api>,
    Names(names): Names<OfTable>,
    JsonBody(batch): JsonBody<Batch, BATCH_BYTES_MAX>,
) -> Result<Json<Results>, Problem> {
    if batch.writes.len() > WRITES_MAX {
        let count = batch.writes.len();
        return Err(Problem::shape(format!(
            "{count} writes, the limit is {WRITES_MAX}"
        )));
    }
    networks::check(&api.db, &names.network)?;
    let (mut refused, mut writes) = (Vec::new(), Vec::new());
    for write in batch.writes {
        let write = write.action().map(|(key, action)| Write {
            network: names.network.clone(),
            table: names.table.clone(),
            key,
            action,
        });
        refused.push(write.map(|write| writes.push(write)).err());
    }
    let mut written = api.db.write_batch(writes).await?.into_iter();
    let outcomes = refused.into_iter().filter_map(|refused| match refused {
        Some(problem) => Some(Outcome::from(Err(problem))),
        None => written.next().map(|it| it.map_err(Problem::from).into()),
    });
    let results: Vec<Outcome> = outcomes.collect();
    let accepted = results.iter().filter(|it| it.problem.is_none()).count();
    Ok(Json(Results { results, accepted }))
}
