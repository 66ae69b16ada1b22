//! What other layers add below `/v1/` and to `/metrics`, beside the plain paths of [`crate::Routes`].
//!
//! A layer hands over a router whose endpoints carry their part of the OpenAPI document, and what adds its families to each
//! scrape. Both go with the node from one server to the next.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use crate::metrics::Families;

type Adding = Pin<Box<dyn Future<Output = Families> + Send>>;
type Source = Arc<dyn Fn() -> Adding + Send + Sync>;

/// Endpoints and metrics of other layers. Cheap to clone.
#[derive(Clone, Default)]
pub struct Extras {
    endpoints: OpenApiRouter,
    metrics: Vec<Source>,
}

impl Extras {
    /// Adds endpoints; their paths begin with `/v1/` and differ from all others.
    #[must_use]
    pub fn with_endpoints(mut self, endpoints: OpenApiRouter) -> Self {
        self.endpoints = self.endpoints.merge(endpoints);
        self
    }

    /// Adds metric families to each scrape.
    #[must_use]
    pub fn with_metrics<F, A>(mut self, read: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Families> + Send + 'static,
    {
        self.metrics.push(Arc::new(move || Box::pin(read())));
        self
    }

    pub(crate) fn endpoints(&self) -> OpenApiRouter {
        self.endpoints.clone()
    }

    /// Reads the families of all layers.
    pub(crate) async fn families(&self) -> Vec<Families> {
        let mut all = Vec::new();
        for read in &self.metrics {
            all.push(read().await);
        }
        all
    }
}

impl fmt::Debug for Extras {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extras")
            .field("metrics", &self.metrics.len())
            .finish_non_exhaustive()
    }
}
