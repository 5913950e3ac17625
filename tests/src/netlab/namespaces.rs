//! Two network namespaces that a cable joins, and what runs in them.
//!
//! Each pair has namespaces of its own, so that pairs side by side can use the same addresses. Their names tell the
//! process that made them: what a killed one left behind goes when the next pair is made.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::{Error, unavailable};

/// Where `ip netns` keeps names.
const FOLDER: &str = "/run/netns";
/// Names are `netlab-PID-NUMBER-SIDE`.
const PREFIX: &str = "netlab-";
/// The device at either end.
pub(super) const DEVICE: &str = "link0";
/// Packets a device holds until the emulator takes them: those of one tick at several Gbit/s.
const DEVICE_PACKETS: u32 = 4000;
/// MTU of a plain cable, in bytes.
const VETH_MTU: u32 = 1500;

/// One end of a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

/// Two network namespaces and the cable between them, gone without a trace when dropped, with all that runs in them.
#[derive(Debug)]
pub struct Pair {
    a: Namespace,
    /// `None` = both ends are the loopback device of the first.
    b: Option<Namespace>,
}

#[derive(Debug)]
struct Namespace {
    name: String,
}

impl Pair {
    /// A pair joined by a plain cable (veth, MTU 1500, with the kernel's offloads): no rate, no delay, no loss.
    ///
    /// # Errors
    /// Not root, no `ip`, or it refused.
    pub fn veth() -> Result<Self, Error> {
        match unavailable() {
            None | Some(Error::NoTun) => {}
            Some(why) => return Err(why),
        }
        let pair = Self::bare()?;
        let (a, b) = (pair.name(Side::A), pair.name(Side::B));
        ip(&["link", "add", DEVICE, "netns", a, "type", "veth", "peer", "name", DEVICE, "netns", b])?;
        pair.bring_up(VETH_MTU)?;
        Ok(pair)
    }

    /// Both ends in one namespace, on a loopback device that takes packets of 1500 bytes.
    ///
    /// # Errors
    /// Not root, no `ip`, or it refused.
    pub fn loopback() -> Result<Self, Error> {
        match unavailable() {
            None | Some(Error::NoTun) => {}
            Some(why) => return Err(why),
        }
        let mut pair = Self::bare()?;
        pair.b = None;
        ip_batch(pair.name(Side::A), &format!("link set lo mtu {VETH_MTU} up\n"))?;
        Ok(pair)
    }

    /// A pair without a cable.
    pub(super) fn bare() -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("{PREFIX}{}-{number}-{side}", std::process::id());
        Ok(Self { a: Namespace::make(name("a"))?, b: Some(Namespace::make(name("b"))?) })
    }

    /// Gives the devices their addresses.
    pub(super) fn bring_up(&self, mtu: u32) -> Result<(), Error> {
        for side in [Side::A, Side::B] {
            let (name, address) = (self.name(side), self.address(side));
            // Nobody speaks unasked: a link-local address would send packets of its own. Kernels without IPv6 refuse.
            let _ = ip(&["-n", name, "link", "set", DEVICE, "addrgenmode", "none"]);
            ip_batch(
                name,
                &format!(
                    "link set lo up\n\
                     link set {DEVICE} mtu {mtu} txqueuelen {DEVICE_PACKETS} up\n\
                     addr add {address}/30 dev {DEVICE}\n"
                ),
            )?;
        }
        Ok(())
    }

    fn namespace(&self, side: Side) -> &Namespace {
        match side {
            Side::A => &self.a,
            Side::B => self.b.as_ref().unwrap_or(&self.a),
        }
    }

    /// Name of a namespace, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self, side: Side) -> &str {
        &self.namespace(side).name
    }

    /// Address of an end, reached from the other end only.
    #[must_use]
    pub fn address(&self, side: Side) -> Ipv4Addr {
        match side {
            _ if self.b.is_none() => Ipv4Addr::LOCALHOST,
            Side::A => Ipv4Addr::new(10, 77, 0, 1),
            Side::B => Ipv4Addr::new(10, 77, 0, 2),
        }
    }

    /// Address of end A.
    #[must_use]
    pub fn address_a(&self) -> Ipv4Addr {
        self.address(Side::A)
    }

    /// Address of end B.
    #[must_use]
    pub fn address_b(&self) -> Ipv4Addr {
        self.address(Side::B)
    }

    /// A program to be run in a namespace, not yet started. The process it becomes is the program itself.
    #[must_use]
    pub fn command(&self, side: Side, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(side)]).arg(program);
        command
    }

    /// A program to be run in namespace A.
    #[must_use]
    pub fn command_a(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command(Side::A, program)
    }

    /// A program to be run in namespace B.
    #[must_use]
    pub fn command_b(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command(Side::B, program)
    }

    /// Does a task on a thread inside a namespace. Sockets that it opens stay there, wherever they are used.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// When the task does.
    pub fn inside<T: Send>(&self, side: Side, task: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let namespace = self.namespace(side);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                namespace.enter()?;
                Ok(task())
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

impl Namespace {
    fn make(name: String) -> Result<Self, Error> {
        ip(&["netns", "add", &name])?;
        Ok(Self { name })
    }

    fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Moves this thread there.
    fn enter(&self) -> Result<(), Error> {
        let path = self.path();
        let system = |source| Error::System { what: format!("entering {}", path.display()), source };
        let file = File::open(&path).map_err(system)?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| system(errno.into()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends what runs in a namespace of ours and removes it.
fn remove(name: &str) {
    // A process there would keep it alive without a name.
    if let Ok(output) = ip(&["netns", "pids", name]) {
        let pids = output.split_whitespace().filter_map(|pid| pid.parse().ok());
        for pid in pids.filter(|&pid: &u32| pid != std::process::id()) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
    // It may have gone already; there is nobody left to tell.
    let _ = ip(&["netns", "del", name]);
}

/// Removes all network namespaces that this process has made, and ends what runs in them.
pub fn remove_namespaces() {
    let own = std::process::id().cast_signed();
    remove_those_of(|maker| maker == own);
}

/// Removes what killed processes left behind.
fn remove_leftovers() {
    remove_those_of(|maker| maker > 0 && kill(Pid::from_raw(maker), None) == Err(Errno::ESRCH));
}

/// Removes namespaces by the process that made them.
fn remove_those_of(wanted: impl Fn(i32) -> bool) {
    for entry in std::fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok());
        if maker.is_some_and(&wanted) {
            remove(name);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<String, Error> {
    let what = arguments.join(" ");
    let output = Command::new("ip").args(arguments).output();
    said(what, output)
}

/// Several commands at once, in a namespace.
fn ip_batch(namespace: &str, commands: &str) -> Result<(), Error> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace, "-batch", "-"]);
    let run = |command: &mut Command| {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.as_bytes())?;
        }
        child.wait_with_output()
    };
    said(format!("-n {namespace} -batch"), run(&mut command)).map(drop)
}

fn said(arguments: String, output: std::io::Result<Output>) -> Result<String, Error> {
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(Error::Ip { arguments, said: String::from_utf8_lossy(&output.stderr).trim().to_owned() }),
        Err(source) => Err(Error::System { what: format!("ip {arguments}"), source }),
    }
}
