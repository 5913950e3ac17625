//! A link of our choice between two namespaces, gone without a trace when dropped.

use std::net::Ipv4Addr;
use std::process::Command;

use super::counters::Report;
use super::engine::Engine;
use super::error::{Error, unavailable};
use super::link::{Direction, Link, LinkError, Settings};
use super::namespaces::Pair;

/// Two namespaces with an emulated link between them. Needs root.
#[derive(Debug)]
pub struct Lab {
    /// Stops before the namespaces go.
    engine: Engine,
    pair: Pair,
}

impl Lab {
    /// Makes the namespaces and the link; it is up on return.
    ///
    /// # Errors
    /// Not root, no TUN devices, no `ip`, settings that cannot be, or a refusal of the operating system.
    pub fn start(settings: Settings) -> Result<Self, Error> {
        settings.check()?;
        if let Some(why) = unavailable() {
            return Err(why);
        }
        let pair = Pair::bare()?;
        let engine = Engine::start(&settings, &pair)?;
        Ok(Self { engine, pair })
    }

    /// The namespaces: names, threads inside, and what works with a plain cable as well.
    #[must_use]
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// A program to be run in namespace A, not yet started.
    #[must_use]
    pub fn command_a(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.pair.command_a(program)
    }

    /// A program to be run in namespace B, not yet started.
    #[must_use]
    pub fn command_b(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.pair.command_b(program)
    }

    /// Address of end A.
    #[must_use]
    pub fn address_a(&self) -> Ipv4Addr {
        self.pair.address_a()
    }

    /// Address of end B.
    #[must_use]
    pub fn address_b(&self) -> Ipv4Addr {
        self.pair.address_b()
    }

    /// Makes one direction another link, all of it, now. What the schedule says later still happens.
    ///
    /// # Errors
    /// A link that cannot be.
    pub fn change(&self, direction: Direction, link: Link) -> Result<(), LinkError> {
        link.check()?;
        self.engine.change(direction, link);
        Ok(())
    }

    /// What both directions did since the start.
    #[must_use]
    pub fn counters(&self) -> Report {
        self.engine.report()
    }

    /// Whether the emulator has real-time priority; without it, programs under test can delay it.
    #[must_use]
    pub fn real_time(&self) -> bool {
        self.engine.real_time()
    }
}
