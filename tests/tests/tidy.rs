//! Rules that matter and that compilers do not check.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pangea_ipc::policy::{KEYS, Policy};
use pangea_tests::node::program;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(folder: &str) -> String {
    std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap()
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && name != "generated" && name != ".git" {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut out = Vec::new();
    for folder in ["control", "dataplane", "ipc-schema", "tests"] {
        sources(&root().join(folder), &mut out);
    }
    out
}

#[test]
fn crates_import_only_what_the_design_lets_them() {
    let allowed: [(&str, &[&str]); 8] = [
        ("ipc-schema", &[]),
        ("ipc-schema/ring", &[]),
        ("dataplane/fec", &[]),
        ("dataplane/core", &["pangea-fec", "pangea-ipc"]),
        ("control/core", &["pangea-ipc"]),
        ("control/client", &["pangea-ipc", "pangea-ring"]),
        ("dataplane", &["pangea-dataplane-core", "pangea-fec", "pangea-ipc", "pangea-ring"]),
        ("control", &["pangea-client", "pangea-control-core", "pangea-ipc", "pangea-ring"]),
    ];
    for (folder, allowed) in allowed {
        let text = manifest(folder);
        let own = text.lines().filter(|line| line.starts_with("pangea-")).filter_map(|line| line.split('.').next());
        for import in own {
            assert!(allowed.contains(&import), "{folder} must not import {import}");
        }
        if folder.starts_with("control") {
            assert!(!text.contains("quinn"), "{folder} must not import quinn");
        }
        if folder.ends_with("core") {
            for hands in ["tokio", "quinn", "nix", "redb"] {
                assert!(!text.contains(hands), "{folder} is without hands: no {hands}");
            }
            assert!(root().join(folder).join("clippy.toml").exists(), "{folder} forbids the clock");
        }
    }
}

#[test]
fn unsafe_lives_in_two_houses() {
    for path in all_sources() {
        let shown = path.display().to_string();
        let house = shown.contains("/ring/") || shown.contains("/fec/");
        let text = std::fs::read_to_string(&path).unwrap();
        let word = concat!("unsafe", " {");
        assert!(house || !text.contains(word), "{shown}");
    }
}

#[test]
fn every_file_says_what_it_is_for_and_stays_readable() {
    /// Longer files are several things.
    const LINES_MAX: usize = 640;
    for path in all_sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} does not open with its job", path.display());
        assert!(text.lines().count() <= LINES_MAX, "{} is too long", path.display());
    }
}

/// Texts without the places where lines are broken.
fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn policy_keys_are_documented_in_the_configuration_the_runbook_and_the_help_and_no_others_are() {
    let config = std::fs::read_to_string(root().join("deploy/pangea.toml")).unwrap();
    let runbook = std::fs::read_to_string(root().join("docs/RUNBOOK.md")).unwrap();
    let help = program("pangeactl").args(["policy", "set", "--help"]).output().unwrap();
    let help = unwrapped(&String::from_utf8(help.stdout).unwrap());
    let default = Policy::default();

    let (_, policy) = config.split_once("\n[policy]\n").unwrap();
    let lines = policy.lines().filter_map(|line| line.strip_prefix("#: \"")?.split_once("\" = "));
    let configured: BTreeMap<&str, &str> = lines.map(|(key, value)| (key, value.trim_matches('"'))).collect();
    let (_, table) = runbook.split_once("\n## Policy keys\n").unwrap();
    let table = table.split_once("\n## ").unwrap().0;
    let mut rows = BTreeMap::new();
    for row in table.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (key, rest) = row.split_once("` | ").unwrap();
        rows.insert(key, rest);
    }
    let keys: BTreeSet<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(configured.keys().copied().collect::<BTreeSet<_>>(), keys, "deploy/pangea.toml");
    assert_eq!(rows.keys().copied().collect::<BTreeSet<_>>(), keys, "docs/RUNBOOK.md");

    for (key, value) in default.entries() {
        let as_configured = Policy::default().with(key.name, configured[key.name]).unwrap();
        assert_eq!(as_configured, default, "deploy/pangea.toml: {} has another default", key.name);
        assert_eq!(rows[key.name], format!("`{value}` | {} | {} |", key.takes, key.help), "docs/RUNBOOK.md");
        assert!(help.contains(&unwrapped(&format!("{} {}", key.name, key.takes))), "{}: {help}", key.name);
    }
}

#[test]
fn nothing_unfinished_is_left() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("unimplemented", "!(")];
    for path in all_sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in words {
            assert!(!text.contains(word), "{} has {word}", path.display());
        }
    }
}
