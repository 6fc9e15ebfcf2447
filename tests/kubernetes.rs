//! The manifests of `deploy/kubernetes`: against the JSON Schemas of Kubernetes' API, and against the program.
//!
//! That shows: every field is one of the API's and has its type, every name that one manifest uses of another is
//! there, and what they run and mount is what walhook takes. Not that a cluster admits them, nor what its
//! controllers make of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes")
}

/// The documents of these files.
fn documents(extensions: &[&str]) -> Vec<Value> {
    let mut found = Vec::new();
    let mut paths: Vec<_> =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if !extensions.iter().any(|wanted| path.extension().is_some_and(|it| it == *wanted)) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let value = <Value as serde::Deserialize>::deserialize(document);
            found.push(value.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        }
    }
    found
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

fn named<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = of_kind(documents, kind).into_iter().find(|it| it["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The API's definitions; `tests/kubernetes/schemas.json` says whose they are.
struct Schemas(Value);

impl Schemas {
    fn read() -> Self {
        let text = include_str!("kubernetes/schemas.json");
        Self(serde_json::from_str(text).unwrap())
    }

    /// What is wrong with a manifest.
    fn check(&self, manifest: &Value) -> Vec<String> {
        let kind = manifest["kind"].as_str().unwrap_or_default();
        let Some(reference) = self.0["kinds"].get(kind) else {
            return vec![format!("no schema of the kind {kind:?}")];
        };
        let mut wrong = Vec::new();
        self.walk(&serde_json::json!({ "$ref": reference }), manifest, kind, &mut wrong);
        wrong
    }

    fn walk(&self, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
        for (keyword, says) in schema.as_object().unwrap() {
            match keyword.as_str() {
                "$ref" => {
                    let pointer = says.as_str().unwrap().trim_start_matches('#');
                    let schema = self.0.pointer(pointer);
                    let schema = schema.unwrap_or_else(|| panic!("no definition {pointer}"));
                    self.walk(schema, value, at, wrong);
                }
                "type" => {
                    if !has_type(says, value) {
                        wrong.push(format!("{at}: {value} is no {says}"));
                    }
                }
                "enum" => {
                    if !says.as_array().unwrap().contains(value) {
                        wrong.push(format!("{at}: {value} is none of {says}"));
                    }
                }
                "oneOf" => {
                    let fits = |schema: &Value| {
                        let mut wrong = Vec::new();
                        self.walk(schema, value, at, &mut wrong);
                        wrong.is_empty()
                    };
                    if says.as_array().unwrap().iter().filter(|schema| fits(schema)).count() != 1 {
                        wrong.push(format!("{at}: {value} is not one of {says}"));
                    }
                }
                "items" => {
                    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.walk(says, item, &format!("{at}[{n}]"), wrong);
                    }
                }
                "required" => {
                    for name in says.as_array().unwrap() {
                        if value.get(name.as_str().unwrap()).is_none() {
                            wrong.push(format!("{at}: {name} is missing"));
                        }
                    }
                }
                "properties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        if let Some(schema) = says.get(name) {
                            self.walk(schema, value, &format!("{at}.{name}"), wrong);
                        }
                    }
                }
                "additionalProperties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        let at = format!("{at}.{name}");
                        if schema.pointer("/properties").is_some_and(|it| it.get(name).is_some()) {
                            continue;
                        }
                        if says.is_object() {
                            self.walk(says, value, &at, wrong);
                        } else if says.as_bool() != Some(true) {
                            wrong.push(format!("{at}: no such field"));
                        }
                    }
                }
                // A number's size, which no manifest of ours comes near.
                "format" => {}
                strange => panic!("{at}: the keyword {strange} is not looked at"),
            }
        }
    }
}

/// Null is left out by the API's server, so it is no mistake there; in our manifests it is one.
fn has_type(says: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "number" => value.is_number(),
        "null" => false,
        strange => panic!("the type {strange} is not looked at"),
    };
    says.as_array().map_or_else(|| is(says), |several| several.iter().any(is))
}

#[test]
fn kubernetes_manifests_are_as_the_schemas_of_the_api_say() {
    let schemas = Schemas::read();
    let documents = documents(&["yaml", "example"]);
    assert!(documents.len() >= 8, "{} documents", documents.len());
    for document in &documents {
        let wrong = schemas.check(document);
        assert!(wrong.is_empty(), "{}: {wrong:#?}", document["metadata"]["name"]);
    }
    // And the check finds what is wrong.
    let leader = named(&documents, "Deployment", "walhook-leader");
    for (pointer, value, says) in [
        ("/spec/replicas", Value::from("two"), "is no"),
        ("/spec/template/spec/terminationGracePeriodSeconds", Value::Null, "is no"),
        ("/spec/template/spec/containers/0/ports/0/containerPort", Value::from(1.5), "is no"),
        ("/spec/template/spec/containers/0/name", Value::from(1), "is no"),
        ("/apiVersion", Value::from("extensions/v1beta1"), "is none of"),
    ] {
        let mut broken = leader.clone();
        *broken.pointer_mut(pointer).unwrap() = value;
        let wrong = schemas.check(&broken);
        assert!(wrong.len() == 1 && wrong[0].contains(says), "{pointer}: {wrong:?}");
    }
    let mut broken = leader.clone();
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = Value::from("x");
    assert!(schemas.check(&broken)[0].contains("livenesProbe: no such field"));
    broken["spec"].as_object_mut().unwrap().remove("selector");
    assert!(schemas.check(&broken).iter().any(|wrong| wrong.contains("\"selector\" is missing")));
}

/// The pod of a deployment, and its one container.
fn pod(deployment: &Value) -> (&Value, &Value) {
    let pod = &deployment["spec"]["template"]["spec"];
    let [container] = &pod["containers"].as_array().unwrap()[..] else { panic!("{pod}") };
    (pod, container)
}

/// The texts of a list's entries under this name.
fn texts<'a>(list: &'a Value, name: &str) -> BTreeSet<&'a str> {
    list.as_array().into_iter().flatten().filter_map(|entry| entry[name].as_str()).collect()
}

#[test]
fn kubernetes_manifests_run_what_walhook_takes_and_name_what_is_there() {
    let documents = documents(&["yaml", "example"]);
    let toml = named(&documents, "ConfigMap", "walhook")["data"]["walhook.toml"].as_str().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("walhook.toml");
    fs::write(&path, toml).unwrap();
    let deployments = of_kind(&documents, "Deployment");
    assert_eq!(deployments.len(), 2);
    for deployment in deployments {
        let (pod, container) = pod(deployment);
        let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
        let args: Vec<&str> = args.collect();
        walhook::cli::Cli::try_parse_from([&["walhook"], &args[..]].concat()).unwrap();

        // What is mounted: each volume is there, comes from what is there, and holds each file that is named.
        let volumes = pod["volumes"].as_array().unwrap();
        assert_eq!(texts(&pod["volumes"], "name"), texts(&container["volumeMounts"], "name"));
        let mut env = Vec::new();
        for variable in container["env"].as_array().unwrap() {
            let (name, value) =
                (variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
            let Some(name) = name.strip_suffix("_FILE") else {
                env.push((name.to_owned(), value.to_owned()));
                continue;
            };
            let mounts = container["volumeMounts"].as_array().unwrap();
            let (folder, file) = value.rsplit_once('/').unwrap();
            let mount = mounts.iter().find(|mount| mount["mountPath"] == folder).unwrap();
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
            let secret = volume["secret"]["secretName"].as_str().unwrap();
            let secret = &named(&documents, "Secret", secret)["stringData"][file];
            env.push((name.to_owned(), secret.as_str().unwrap().to_owned()));
        }
        for volume in volumes {
            if let Some(name) = volume["configMap"]["name"].as_str() {
                named(&documents, "ConfigMap", name);
            }
            let mode = &volume["secret"]["defaultMode"];
            assert!(mode.is_null() || *mode == 0o440, "{volume}");
        }

        // What it reads is a configuration, with those variables; a worker has no database's.
        let grace = if args.contains(&"worker") {
            let names: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).collect();
            assert!(names.iter().all(|name| name.starts_with("WALHOOK_WORKERS__")), "{names:?}");
            let config = walhook::config::load_worker(&path, env).unwrap();
            assert_eq!(config.pipeline(), "walhook");
            None
        } else {
            let config = walhook::config::load(&path, env).unwrap();
            Some(config.delivery.timeout.as_secs() + 10)
        };
        let of_pod = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace.is_none_or(|grace| grace == of_pod), "{grace:?}");
        assert_eq!(of_pod, 25, "one for both");

        assert_eq!(pod["serviceAccountName"], "walhook");
        named(&documents, "ServiceAccount", "walhook");
        for (probe, asks) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            let get = &container[probe]["httpGet"];
            assert_eq!((&get["path"], &get["port"]), (&asks.into(), &"admin".into()), "{probe}");
        }
        assert!(texts(&container["ports"], "name").contains("admin"));
        assert!(toml.contains(&format!("0.0.0.0:{}", container["ports"][0]["containerPort"])));
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert_eq!(deployment["spec"]["selector"]["matchLabels"], *labels);
        let budgets = of_kind(&documents, "PodDisruptionBudget");
        let budgets = budgets.iter().filter(|it| it["spec"]["selector"]["matchLabels"] == *labels);
        assert_eq!(budgets.count(), 1, "{labels}");
    }
}

#[test]
fn kubernetes_counts_the_workers_by_what_the_leader_shows_and_nobody_else_does() {
    let documents = documents(&["yaml"]);
    let [scaler] = &of_kind(&documents, "HorizontalPodAutoscaler")[..] else { panic!() };
    let target = &scaler["spec"]["scaleTargetRef"];
    let workers = named(&documents, target["kind"].as_str().unwrap(), "walhook-worker");
    assert_eq!(
        (&target["name"], &target["apiVersion"]),
        (&"walhook-worker".into(), &workers["apiVersion"])
    );
    assert!(workers["spec"]["replicas"].is_null(), "an apply would set it back");
    let metric = &scaler["spec"]["metrics"][0]["external"];
    let name = metric["metric"]["name"].as_str().unwrap();
    let metrics = walhook::server::metrics::Metrics::new("walhook", ["any.type"]).unwrap();
    assert!(metrics.render().unwrap().contains(&format!("\n{name}{{")), "no metric {name}");
    let leader = named(&documents, "Deployment", "walhook-leader");
    assert!(leader["spec"]["replicas"].as_u64().unwrap() >= 2, "one stands by");
}
