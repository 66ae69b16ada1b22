//! Metric families in the shape that the text encoder takes.

use networkdb::Histogram;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as Buckets, LabelPair, Metric, MetricFamily, MetricType,
};

/// The prefix of every name.
const PREFIX: &str = "networkdb";

/// Metric families one after the other; names get the prefix `networkdb_`.
#[derive(Debug, Default)]
pub struct Families(Vec<MetricFamily>);

/// Labels of a sample.
pub type Labels<'a> = [(&'a str, &'a str)];

impl Families {
    /// Adds what only grows; `name` is without prefix and ends with `_total`.
    pub fn counter(&mut self, name: &str, help: &str, count: u64) {
        self.add(name, help, MetricType::COUNTER, vec![counted(&[], count)]);
    }

    /// Adds what only grows, by one label.
    pub fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        samples: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        let samples = samples.into_iter();
        let metrics = samples.map(|(value, count)| counted(&[(label, value)], count));
        let metrics = metrics.collect();
        self.add(name, help, MetricType::COUNTER, metrics);
    }

    /// Adds what only grows, by several labels.
    pub fn labelled<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (&'a Labels<'a>, u64)>,
    ) {
        let samples = samples.into_iter();
        let metrics = samples.map(|(labels, count)| counted(labels, count));
        let metrics = metrics.collect();
        self.add(name, help, MetricType::COUNTER, metrics);
    }

    /// Adds what goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.add(name, help, MetricType::GAUGE, vec![measured(&[], value)]);
    }

    /// Adds what goes up and down, by several labels.
    pub fn levels<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (&'a Labels<'a>, f64)>,
    ) {
        let samples = samples.into_iter();
        let metrics = samples.map(|(labels, level)| measured(labels, level));
        let metrics = metrics.collect();
        self.add(name, help, MetricType::GAUGE, metrics);
    }

    /// Adds what goes up and down, by one label.
    pub fn gauges<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        samples: impl IntoIterator<Item = (&'a str, f64)>,
    ) {
        let samples = samples.into_iter();
        let metrics = samples.map(|(value, level)| measured(&[(label, value)], level));
        let metrics = metrics.collect();
        self.add(name, help, MetricType::GAUGE, metrics);
    }

    /// Adds a fact: its labels tell it, its value is 1.
    pub fn info(&mut self, name: &str, help: &str, labels: &Labels<'_>) {
        self.add(name, help, MetricType::GAUGE, vec![measured(labels, 1.0)]);
    }

    /// Adds durations in seconds.
    pub fn histogram(&mut self, name: &str, help: &str, durations: &Histogram) {
        let buckets = durations.cumulative().map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound.as_secs_f64());
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Buckets::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(durations.count());
        histogram.set_sample_sum(durations.sum().as_secs_f64());
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.add(name, help, MetricType::HISTOGRAM, vec![metric]);
    }

    /// Adds families that have their names already.
    pub(super) fn extend(&mut self, families: Vec<MetricFamily>) {
        self.0.extend(families);
    }

    /// Returns the families; those without a sample are left out.
    pub(super) fn into_inner(self) -> Vec<MetricFamily> {
        self.0
    }

    fn add(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        // The encoder refuses a family without samples.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(format!("{PREFIX}_{name}"));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }
}

fn counted(labels: &Labels<'_>, count: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(number(count));
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_counter(counter);
    metric
}

fn measured(labels: &Labels<'_>, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_gauge(gauge);
    metric
}

fn pairs(labels: &Labels<'_>) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

/// The format knows no other numbers. Exact below 2^53, which nothing here reaches in a century.
pub(super) fn number(count: u64) -> f64 {
    count as f64
}
