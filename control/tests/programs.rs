//! The two programs as a shell sees them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

/// A pipe that nobody reads.
fn closed_pipe() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

#[test]
fn help_names_every_command_and_wrong_usage_has_its_own_status() {
    let ctl = env!("CARGO_BIN_EXE_pangeactl");
    let help = Command::new(ctl).arg("--help").output().unwrap();
    let text = String::from_utf8_lossy(&help.stdout);
    for command in ["demo", "put", "get", "ticket", "ls", "peer", "policy", "worker", "completions"] {
        assert!(text.contains(command), "{command}");
    }
    assert_eq!(Command::new(ctl).arg("nonsense").output().unwrap().status.code(), Some(2));
    let gone = Command::new(ctl).args(["completions", "bash"]).stdout(closed_pipe()).output().unwrap();
    assert!(gone.status.success(), "{}", String::from_utf8_lossy(&gone.stderr));
    let completions = Command::new(ctl).args(["completions", "bash"]).output().unwrap();
    assert!(String::from_utf8_lossy(&completions.stdout).contains("pangeactl"));
}

#[test]
fn the_commented_configuration_is_right() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/pangea.toml");
    let controller = env!("CARGO_BIN_EXE_pangea-controller");
    let output = Command::new(controller).args(["--config", config, "--check-config"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Also with every comment that holds a setting taken away.
    let text = std::fs::read_to_string(config).unwrap();
    let all: String = text.lines().map(|line| format!("{}\n", line.strip_prefix("#: ").unwrap_or(line))).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.toml");
    std::fs::write(&path, all).unwrap();
    let output = Command::new(controller).arg("--config").arg(&path).arg("--check-config").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
