//! The services that the agent balances, where it does, and what of them is to be looked at.

use anyhow::Result;
use serde_json::Value;

use super::collect::Collector;
use super::names::{self, line, shown};
use super::summary::{Finding, Kind};

/// What was learned of services.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// `/v1/services`.
    about: Value,
    /// `/v1/services/{n}` of each network.
    balanced: Vec<(String, Value)>,
}

impl Collector<'_> {
    /// Asks for the services; nothing when the agent balances none.
    pub(super) async fn services(&mut self) -> Result<Services> {
        let about = self.ask_if_there("services/services", "/v1/services");
        let mut found = Services {
            about: about.await?.unwrap_or_default(),
            balanced: Vec::new(),
        };
        for network in found.names() {
            let name = format!("services/{}", names::file(&network));
            let target = format!("/v1/services/{}", names::url(&network));
            if let Some(balanced) = self.ask_if_there(&name, &target).await? {
                found.balanced.push((network, balanced));
            }
        }
        Ok(found)
    }
}

impl Services {
    fn networks(&self) -> impl Iterator<Item = &Value> {
        self.about["networks"].as_array().into_iter().flatten()
    }

    fn names(&self) -> Vec<String> {
        let names = self.networks().filter_map(|it| it["network"].as_str());
        names.map(str::to_owned).collect()
    }

    /// Finds what a person should look at.
    pub(super) fn findings(&self, found: &mut Vec<Finding>) {
        let mut add = |text: String| found.push(Finding::new(Kind::Services, text));
        let text = |value: &Value| line(value.as_str().unwrap_or_default());
        for network in self.networks() {
            let name = shown(network["network"].as_str().unwrap_or_default());
            if network["reason"].is_string() {
                let reason = text(&network["reason"]);
                add(format!(
                    "network {name}: services are not balanced: {reason}"
                ));
            }
            let error = &network["syncs"]["last_error"];
            if error.is_string() {
                add(format!("network {name}: {}", text(error)));
            }
            for service in network["services"].as_array().into_iter().flatten() {
                for refused in service["refused"].as_array().into_iter().flatten() {
                    let (id, reason) = (text(&service["id"]), text(&refused["reason"]));
                    add(format!("network {name}: service {id}: {reason}"));
                }
            }
        }
        for (network, balanced) in &self.balanced {
            let operations = balanced["operations"].as_u64().unwrap_or_default();
            if operations > 0 {
                let first = line(balanced["plan"][0].as_str().unwrap_or_default());
                let name = shown(network);
                add(format!(
                    "network {name}: services in the kernel are {operations} changes away from the tables: {first}"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_with_services_is_flagged_and_what_is_well_is_not() {
        let well = json!({"networks": [{"network": "ov1", "services": [{"id": "s1", "refused": []}], "syncs": {}}]});
        let mut services = Services {
            about: well,
            balanced: vec![("ov1".into(), json!({"operations": 0, "plan": []}))],
        };
        let mut found = Vec::new();
        services.findings(&mut found);
        assert_eq!(found, []);
        services.about = json!({"networks": [{"network": "ov1", "reason": "no IPVS", "syncs": {"last_error": "port in use"},
            "services": [{"id": "s1", "refused": [{"frontend": "10.0.1.8", "reason": "taken"}]}]}]});
        services.balanced = vec![(
            "ov1".into(),
            json!({"operations": 2, "plan": ["set service"]}),
        )];
        services.findings(&mut found);
        let texts: Vec<&str> = found.iter().map(Finding::text).collect();
        for (at, part) in ["no IPVS", "port in use", "s1: taken", "2 changes"]
            .iter()
            .enumerate()
        {
            assert!(texts[at].contains(part), "{}", texts[at]);
        }
    }
}
