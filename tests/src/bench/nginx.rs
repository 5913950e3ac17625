//! nginx and curl over loopback as a peer.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::flow::gbps;
use super::report::median;

/// GB/s of a file through both; `None` = one of them is not installed.
pub(super) fn nginx(file: &Path, bytes: u64, runs: usize) -> Option<f64> {
    let there = |program: &str| {
        Command::new(program).arg("--version").output().or_else(|_| Command::new(program).arg("-v").output()).is_ok()
    };
    if !there("nginx") || !there("curl") {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let root = file.parent().unwrap().display();
    let user = if std::fs::metadata("/root").is_ok() { "user root;" } else { "" };
    let config = format!(
        "{user} daemon off; pid {0}/pid; error_log {0}/error; worker_processes 1; events {{}}\nhttp {{ access_log off; \
         sendfile on; tcp_nopush on; server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n",
        folder.path().display()
    );
    let path = folder.path().join("nginx.conf");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&path).arg("-p").arg(folder.path()).stdout(Stdio::null());
    let mut server = command.spawn().unwrap();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let url = format!("http://127.0.0.1:{port}/{}", file.file_name().unwrap().display());
    let rates = (0..runs.max(1)).map(|_| {
        let started = Instant::now();
        let status = Command::new("curl").args(["-sf", "-o", "/dev/null", &url]).status().unwrap();
        assert!(status.success());
        gbps(bytes, started.elapsed())
    });
    let value = median(&rates.collect::<Vec<_>>());
    // Asked, not killed: its worker would live on.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    server.wait().unwrap();
    Some(value)
}
