//! The data path of the agent, where it has one: what it tells, what differs in the kernel, and what of it is to be looked at.

use anyhow::Result;
use serde_json::Value;

use super::collect::Collector;
use super::names::{self, line, shown};
use super::summary::{Finding, Kind};

/// Rows that are kept of each network.
const ROWS: usize = 10_000;

/// Rows of a page.
const PAGE: usize = 1_000;

/// What was learned of the data path.
#[derive(Debug, Default)]
pub(super) struct DataPath {
    /// `/v1/datapath`.
    about: Value,
    /// `/v1/datapath/{n}/plan` of each network.
    plans: Vec<(String, Value)>,
}

impl Collector<'_> {
    /// Asks for the data path; nothing when the agent has none.
    pub(super) async fn data_path(&mut self) -> Result<Option<DataPath>> {
        let Some(about) = self
            .ask_if_there("datapath/datapath", "/v1/datapath")
            .await?
        else {
            return Ok(None);
        };
        let mut found = DataPath {
            about,
            plans: Vec::new(),
        };
        for network in found.names() {
            let dir = format!("datapath/{}", names::file(&network));
            let base = format!("/v1/datapath/{}", names::url(&network));
            let plan = self
                .ask_if_there(&format!("{dir}/plan"), &format!("{base}/plan"))
                .await?;
            if let Some(plan) = plan {
                found.plans.push((network.clone(), plan));
            }
            self.rows(&dir, &base).await?;
        }
        Ok(Some(found))
    }

    /// Reads the rows of a network, a page a file.
    async fn rows(&mut self, dir: &str, base: &str) -> Result<()> {
        let mut cursor = String::new();
        for page in 1..=ROWS / PAGE {
            let target = format!("{base}/rows?limit={PAGE}{cursor}");
            let rows = self
                .ask_if_there(&format!("{dir}/rows-{page}"), &target)
                .await?;
            let Some(next) = rows.as_ref().and_then(|rows| rows["next"].as_str()) else {
                return Ok(());
            };
            cursor = format!("&cursor={}", names::url(next));
        }
        self.cut(format!("{dir}: the first {ROWS} rows"));
        Ok(())
    }
}

impl DataPath {
    fn networks(&self) -> impl Iterator<Item = &Value> {
        self.about["networks"].as_array().into_iter().flatten()
    }

    /// The networks that have devices.
    fn names(&self) -> Vec<String> {
        let there = self.networks().filter(|network| {
            !matches!(network["state"].as_str(), Some("unconfigured" | "refused"))
        });
        let names = there.filter_map(|network| network["network"].as_str());
        names.map(str::to_owned).collect()
    }

    /// Finds what a person should look at.
    pub(super) fn findings(&self, found: &mut Vec<Finding>) {
        let mut add = |text: String| found.push(Finding::new(Kind::DataPath, text));
        for network in self.networks() {
            let name = shown(network["network"].as_str().unwrap_or_default());
            let text = |value: &Value| line(value.as_str().unwrap_or_default());
            match network["state"].as_str() {
                Some("refused") => add(format!(
                    "network {name} is refused: {}",
                    text(&network["reason"])
                )),
                Some("failing") => {
                    let error = text(&network["syncs"]["last_error"]);
                    add(format!("network {name}: the kernel refuses: {error}"));
                }
                Some("frozen") => add(format!(
                    "network {name} is kept as it was, hosts fail together"
                )),
                _ => {}
            }
            for conflict in network["conflicts"].as_array().into_iter().flatten() {
                let winner = &conflict["winner"];
                add(format!(
                    "network {name}: {} is claimed by several endpoints, that of {} on {} counts",
                    text(&conflict["address"]),
                    text(&winner["key"]),
                    text(&winner["host"]),
                ));
            }
            for rejected in network["rejected"].as_array().into_iter().flatten() {
                let (key, reason) = (text(&rejected["key"]), text(&rejected["reason"]));
                add(format!(
                    "network {name}: record {key} is not used: {reason}"
                ));
            }
            for tunnel in network["tunnels"].as_array().into_iter().flatten() {
                let host = text(&tunnel["host"]);
                match tunnel["state"].as_str() {
                    Some("unreachable") => {
                        add(format!(
                            "network {name}: host {host} does not answer through the tunnel"
                        ));
                    }
                    Some("mtu-mismatch") => add(format!(
                        "network {name}: packets of {} bytes do not pass to host {host}, or its MTU is another: {tunnel}",
                        tunnel["mtu"],
                    )),
                    _ => {}
                }
            }
        }
        for (network, plan) in &self.plans {
            let operations = plan["operations"].as_u64().unwrap_or_default();
            if operations > 0 {
                let first = line(plan["plan"][0].as_str().unwrap_or_default());
                let name = shown(network);
                add(format!(
                    "network {name}: the kernel is {operations} changes away from the tables: {first}"
                ));
            }
        }
        for leftover in self.about["leftovers"].as_array().into_iter().flatten() {
            let name = shown(leftover.as_str().unwrap_or_default());
            add(format!(
                "network {name} has a namespace here and no data path, see networkdb datapath cleanup"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_data_path_is_flagged_and_what_is_well_is_not() {
        let well = json!({"networks": [{"network": "ov1", "state": "synced", "conflicts": [], "rejected": [],
            "tunnels": [{"host": "192.0.2.1", "state": "passing"}]}], "leftovers": []});
        let mut path = DataPath {
            about: well,
            plans: vec![("ov1".into(), json!({"operations": 0, "plan": []}))],
        };
        let mut found = Vec::new();
        path.findings(&mut found);
        assert_eq!(found, []);
        assert_eq!(path.names(), ["ov1"]);
        path.about = json!({"networks": [
            {"network": "ov1", "state": "failing", "syncs": {"last_error": "no"},
             "conflicts": [{"address": "10.0.1.5", "winner": {"key": "e1", "host": "192.0.2.1"}}],
             "rejected": [{"key": "e2", "reason": "bad"}],
             "tunnels": [{"host": "192.0.2.1", "state": "unreachable"}, {"host": "192.0.2.2", "state": "mtu-mismatch", "mtu": 1450}]},
            {"network": "ov2", "state": "refused", "reason": "why"},
            {"network": "ov3", "state": "frozen"}], "leftovers": ["old"]});
        path.plans = vec![("ov1".into(), json!({"operations": 3, "plan": ["set fdb"]}))];
        path.findings(&mut found);
        let texts: Vec<&str> = found.iter().map(Finding::text).collect();
        for (at, part) in [
            "refuses: no",
            "10.0.1.5",
            "e2",
            "192.0.2.1 does not answer",
            "1450 bytes",
            "why",
            "ov3",
            "3 changes",
            "old",
        ]
        .iter()
        .enumerate()
        {
            assert!(texts[at].contains(part), "{}", texts[at]);
        }
    }
}
