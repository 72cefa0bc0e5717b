//! The workspace keeps its shape: imports go one way, dependencies have one home, files say what they are.
//!
//! Every rule is a function over plain data that returns its violations; each has a test in which it must find one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::MetadataCommand;

/// From the simulators to the tests: a crate may use anything to its left.
const LAYERS: [&str; 6] = ["envs", "policies", "algos", "trainers", "benchmarks", "tests"];
/// What `envs` must build without.
const LIBTORCH: [&str; 2] = ["tch", "torch-sys"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

/// Package name to the names it depends on.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Edges between members that do not point left.
fn backward_imports(members: &Graph) -> Vec<String> {
    let layer = |package: &str| {
        LAYERS.iter().position(|name| package.strip_prefix("simloop-") == Some(name))
    };
    let mut wrong = Vec::new();
    for (package, dependencies) in members {
        let Some(own) = layer(package) else {
            wrong.push(format!("{package} stands in no layer"));
            continue;
        };
        for dependency in dependencies.iter().filter(|d| d.starts_with("simloop-")) {
            // A crate may name itself among its dev-dependencies, to switch on a feature for its own tests.
            if layer(dependency).is_none_or(|other| other > own) {
                wrong.push(format!("{package} imports {dependency}"));
            }
        }
    }
    wrong
}

/// A way from `start` to any of `targets`, as `a -> b -> c`.
fn path_to(graph: &Graph, start: &str, targets: &[&str]) -> Option<String> {
    let mut ways = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::from([start.to_owned()]);
    while let Some(way) = ways.pop() {
        let last = way.last()?;
        if targets.contains(&last.as_str()) {
            return Some(way.join(" -> "));
        }
        for next in graph.get(last).into_iter().flatten() {
            if seen.insert(next.clone()) {
                ways.push(way.iter().cloned().chain([next.clone()]).collect());
            }
        }
    }
    None
}

/// Dependencies in a member's manifest that do not come from the workspace's table, and versions written twice.
fn homeless_dependencies(name: &str, manifest: &toml::Table, known: &toml::Table) -> Vec<String> {
    let mut wrong = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(toml::Value::Table(table)) = manifest.get(section) else { continue };
        for (dependency, value) in table {
            if dependency.strip_prefix("simloop-") == Some(name) {
                continue; // itself, to switch on a feature for its own tests
            }
            if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                wrong.push(format!("{name}: {dependency} without `workspace = true`"));
            } else if !known.contains_key(dependency) {
                wrong.push(format!("{name}: {dependency} is not in [workspace.dependencies]"));
            }
        }
    }
    wrong
}

/// Whether a source file starts by saying what it is.
fn has_header(path: &Path, text: &str) -> bool {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    match path.extension().and_then(|e| e.to_str()) {
        Some("rs") => first.starts_with("//!"),
        Some("py") => {
            let mut lines = text.lines().skip_while(|line| line.starts_with("#!"));
            text.is_empty()
                || lines.next().is_some_and(|l| {
                    l.starts_with("\"\"\"") || l.starts_with("r\"\"\"") || l.starts_with("# ")
                })
        }
        Some("sh") => {
            let mut lines = text.lines().skip_while(|line| line.starts_with("#!"));
            lines.next().is_some_and(|line| line.starts_with("# "))
        }
        _ => true,
    }
}

/// Lines that name a folder of one person's machine.
fn machine_paths(text: &str) -> Vec<&str> {
    // Spelt in halves, so that this file does not name them either.
    let homes = [["/home", "/"], ["/root", "/"], ["/work", "/"], ["/Users", "/"], ["/mnt", "/"]];
    let starts_word = |text: &str, at: usize| {
        text[..at]
            .chars()
            .next_back()
            .is_none_or(|c| !c.is_alphanumeric() && !"._-/{}$)~".contains(c))
    };
    text.lines()
        .filter(|line| {
            homes
                .iter()
                .any(|home| line.match_indices(&home.concat()).any(|(at, _)| starts_word(line, at)))
        })
        .collect()
}

fn tracked_files() -> Option<Vec<PathBuf>> {
    let root = root();
    let listing =
        Command::new("git").arg("-C").arg(&root).args(["ls-files", "-z"]).output().ok()?;
    if !listing.status.success() {
        return None;
    }
    let names = String::from_utf8(listing.stdout).ok()?;
    Some(names.split('\0').filter(|name| !name.is_empty()).map(|name| root.join(name)).collect())
}

fn metadata() -> cargo_metadata::Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("the workspace's own manifests are valid")
}

fn toml(path: &Path) -> toml::Table {
    fs::read_to_string(path)
        .expect("manifests exist")
        .parse()
        .expect("cargo read this file already")
}

#[test]
fn imports_between_crates_go_one_way() {
    let metadata = metadata();
    let members: Graph = metadata
        .workspace_packages()
        .iter()
        .map(|p| (p.name.to_string(), p.dependencies.iter().map(|d| d.name.clone()).collect()))
        .collect();
    let names: BTreeSet<String> = LAYERS.iter().map(|layer| format!("simloop-{layer}")).collect();
    assert_eq!(members.keys().cloned().collect::<BTreeSet<_>>(), names);
    assert_eq!(backward_imports(&members), Vec::<String>::new());
}

#[test]
fn an_import_to_the_right_and_an_unknown_crate_are_found() {
    let graph = |edges: &[(&str, &[&str])]| -> Graph {
        edges
            .iter()
            .map(|(from, to)| ((*from).to_owned(), to.iter().map(|s| (*s).to_owned()).collect()))
            .collect()
    };
    let good = graph(&[
        ("simloop-envs", &["serde"]),
        ("simloop-policies", &["simloop-envs", "tch"]),
        ("simloop-tests", &["simloop-benchmarks", "simloop-envs"]),
    ]);
    assert_eq!(backward_imports(&good), Vec::<String>::new());
    let bad = graph(&[
        ("simloop-envs", &["simloop-policies"]),
        ("simloop-algos", &["simloop-trainers", "simloop-extra"]),
        ("simloop-extra", &[]),
    ]);
    assert_eq!(
        backward_imports(&bad),
        [
            "simloop-algos imports simloop-extra",
            "simloop-algos imports simloop-trainers",
            "simloop-envs imports simloop-policies",
            "simloop-extra stands in no layer",
        ]
    );
}

#[test]
fn envs_builds_without_libtorch() {
    // The lock file holds every platform's and every feature's edges, which can only find too much. Two versions of a
    // package count as one here.
    let lock = toml(&root().join("Cargo.lock"));
    let mut graph = Graph::new();
    for package in lock["package"].as_array().unwrap() {
        let dependencies = package.get("dependencies").and_then(toml::Value::as_array);
        let names =
            dependencies.into_iter().flatten().filter_map(|d| d.as_str()?.split(' ').next());
        let name = package["name"].as_str().unwrap().to_owned();
        graph.entry(name).or_default().extend(names.map(str::to_owned));
    }
    assert_eq!(path_to(&graph, "simloop-envs", &LIBTORCH), None);
    let policies = path_to(&graph, "simloop-policies", &LIBTORCH);
    assert!(policies.is_some(), "the same walk finds libtorch where it is");
}

#[test]
fn a_hidden_way_to_libtorch_is_found() {
    let graph: Graph = [("simloop-envs", "helper"), ("helper", "deep"), ("deep", "torch-sys")]
        .map(|(from, to)| (from.to_owned(), BTreeSet::from([to.to_owned()])))
        .into();
    assert_eq!(
        path_to(&graph, "simloop-envs", &LIBTORCH).unwrap(),
        "simloop-envs -> helper -> deep -> torch-sys"
    );
    assert_eq!(path_to(&graph, "torch-sys", &["serde"]), None);
}

#[test]
fn every_dependency_has_one_home_and_nothing_is_published() {
    let root = root();
    let workspace = toml(&root.join("Cargo.toml"));
    let known = workspace["workspace"]["dependencies"].as_table().unwrap();
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for layer in LAYERS {
        let manifest = toml(&root.join(layer).join("Cargo.toml"));
        wrong.extend(homeless_dependencies(layer, &manifest, known));
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let table = manifest.get(section).and_then(toml::Value::as_table);
            used.extend(table.into_iter().flat_map(|t| t.keys().cloned()));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    let idle: Vec<&String> = known.keys().filter(|name| !used.contains(*name)).collect();
    assert_eq!(
        idle,
        Vec::<&String>::new(),
        "entries of [workspace.dependencies] that no crate uses"
    );
    for package in metadata().workspace_packages() {
        assert_eq!(package.publish, Some(vec![]), "{} can be published", package.name);
    }
}

#[test]
fn a_version_in_a_member_is_found() {
    let known: toml::Table = "serde = '1'\n".parse().unwrap();
    let manifest: toml::Table = "[dependencies]\nserde.workspace = true\nrand = '0.9'\n\
                                 [dev-dependencies]\nlog.workspace = true\n"
        .parse()
        .unwrap();
    assert_eq!(
        homeless_dependencies("envs", &manifest, &known),
        ["envs: rand without `workspace = true`", "envs: log is not in [workspace.dependencies]"]
    );
}

#[test]
fn every_source_file_says_what_it_is() {
    let Some(files) = tracked_files() else {
        println!("skipped: this is no git checkout");
        return;
    };
    let silent: Vec<PathBuf> = files
        .into_iter()
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| !has_header(path, &text)))
        .collect();
    assert_eq!(silent, Vec::<PathBuf>::new());
}

#[test]
fn a_file_without_a_header_is_found() {
    for (name, text, ok) in [
        ("a.rs", "//! What it is.\nfn main() {}", true),
        ("a.rs", "use std::fs;\n//! late", false),
        ("a.rs", "", false),
        ("a.py", "\"\"\"What it is.\"\"\"\n", true),
        ("a.py", "import sys\n", false),
        ("a.sh", "#!/bin/sh\n# What it does.\n", true),
        ("a.sh", "#!/bin/sh\nset -e\n", false),
        ("a.toml", "", true),
    ] {
        assert_eq!(has_header(Path::new(name), text), ok, "{name}: {text:?}");
    }
}

#[test]
fn no_file_names_a_machine() {
    let Some(files) = tracked_files() else {
        println!("skipped: this is no git checkout");
        return;
    };
    let mut found = Vec::new();
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for line in machine_paths(&text) {
            found.push(format!("{}: {}", path.display(), line.trim()));
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn a_machine_path_is_found_and_a_word_that_contains_one_is_not() {
    let named = ["/home", "/jo/data"].concat();
    assert_eq!(machine_paths(&format!("let x = \"{named}\";")).len(), 1);
    assert_eq!(machine_paths(&["a ", "/work", "/main"].concat()).len(), 1);
    assert!(machine_paths("https://example.org/home/page").is_empty());
    assert!(machine_paths("docs/work/plan and https://example.org/~jo/root/x").is_empty());
}
