//! Messages that no writer of ours would make: each list and text one longer than it may be, written by hand. Every
//! reader must refuse them before it allocates for what they hold.

use capnp::message::{Builder, HeapAllocator};

use super::{CodecError, node, peer, worker};
use crate::content::CHUNKS_MAX;
use crate::content::MANIFEST_PAGE;
use crate::failure::FAILURE_TEXT_MAX;
use crate::generated::{common_capnp as common, node_capnp, peer_capnp, worker_capnp};
use crate::node::{ASSIGNMENTS_MAX, DAMAGED_MAX, HISTORY_MAX, LISTING_PAGE_MAX, TEXT_MAX};
use crate::peer::HOLDERS_MAX;
use crate::ticket::{NAME_MAX, TICKET_CHARS_MAX};
use crate::worker::{EVENTS_MAX, INVENTORY_PAGE_MAX, JOBS_MAX, PINS_MAX, SOURCES_MAX, WORKERS_MAX};

/// Reads what `make` writes; says what the reader says.
macro_rules! read {
    ($root:path, $read:path, $make:expr) => {{
        let mut message = Builder::new(HeapAllocator::new());
        let make: fn($root) = $make;
        make(message.init_root());
        message.into_reader().get_root().map_err(CodecError::from).and_then($read).map(drop)
    }};
}

macro_rules! refused {
    ($what:literal, $max:expr, $root:path, $read:path, $make:expr) => {
        match read!($root, $read, $make) {
            Err(CodecError::TooLong { what, max, found }) => {
                assert_eq!((what, max, found), ($what, $max, $max + 1));
            }
            other => panic!("{} beyond its bound: {other:?}", $what),
        }
    };
}

/// One more than a list may have.
fn over(max: usize) -> u32 {
    u32::try_from(max + 1).unwrap()
}

fn long(max: usize) -> String {
    "x".repeat(max + 1)
}

/// A node id or key, so that a reader does not stop at its absence.
const KEY: [u8; 32] = [1; 32];

#[test]
fn commands_and_replies_beyond_a_bound_are_refused() {
    use worker::{read_command, read_reply};
    use worker_capnp::{command, reply};
    refused!("pins", PINS_MAX, command::Builder<'_>, read_command, |to| {
        to.init_set_pins(over(PINS_MAX));
    });
    refused!("sources", SOURCES_MAX, command::Builder<'_>, read_command, |to| {
        to.init_set_sources().init_sources(over(SOURCES_MAX));
    });
    refused!("sources", SOURCES_MAX, command::Builder<'_>, read_command, |to| {
        let mut plan = to.init_fetch();
        plan.set_content(&KEY);
        plan.init_sources(over(SOURCES_MAX));
    });
    refused!("workers", WORKERS_MAX, command::Builder<'_>, read_command, |to| {
        let mut source = to.init_set_sources().init_sources(1).get(0);
        source.set_node(&KEY);
        source.init_endpoints(over(WORKERS_MAX));
    });
    refused!("chunk set", CHUNKS_MAX as usize / 8, command::Builder<'_>, read_command, |to| {
        let mut plan = to.init_fetch();
        plan.set_content(&KEY);
        plan.init_chunks().init_bits(over(CHUNKS_MAX as usize / 8));
    });
    refused!("policy value", 4096, command::Builder<'_>, read_command, |to| {
        let mut entry = to.init_apply_policy().init_entries(1).get(0);
        entry.set_key("fec.mode");
        entry.set_value(long(4096).as_str());
    });
    refused!("manifest page", MANIFEST_PAGE as usize, reply::Builder<'_>, read_reply, |to| {
        to.init_manifest_page(32 * (MANIFEST_PAGE + 1));
    });
    refused!("inventory", INVENTORY_PAGE_MAX, reply::Builder<'_>, read_reply, |to| {
        to.init_inventory(over(INVENTORY_PAGE_MAX));
    });
    refused!("jobs", JOBS_MAX, reply::Builder<'_>, read_reply, |to| {
        to.init_status(over(JOBS_MAX));
    });
    refused!("chunk set", CHUNKS_MAX as usize / 8, reply::Builder<'_>, read_reply, |to| {
        to.init_holdings().init_held().init_bits(over(CHUNKS_MAX as usize / 8));
    });
    refused!("failure text", FAILURE_TEXT_MAX, reply::Builder<'_>, read_reply, |to| {
        to.init_refused().set_text(long(FAILURE_TEXT_MAX).as_str());
    });
}

#[test]
fn registrations_and_events_beyond_a_bound_are_refused() {
    use worker::read_registration;
    use worker_capnp::registration;
    type Root<'a> = registration::Builder<'a>;

    fn sound(to: &mut registration::Builder<'_>) {
        to.set_key(&KEY);
        to.reborrow().init_address().set_ip(&[127, 0, 0, 1]);
    }
    refused!("version", TEXT_MAX, Root<'_>, read_registration, |mut to| {
        sound(&mut to);
        to.set_version(long(TEXT_MAX).as_str());
    });
    refused!("door path", TEXT_MAX, Root<'_>, read_registration, |mut to| {
        sound(&mut to);
        to.set_door(long(TEXT_MAX).as_str());
    });
    refused!("counters name", TEXT_MAX, Root<'_>, read_registration, |mut to| {
        sound(&mut to);
        to.set_counters(long(TEXT_MAX).as_str());
    });
    refused!("jobs", JOBS_MAX, Root<'_>, read_registration, |mut to| {
        sound(&mut to);
        to.init_jobs(over(JOBS_MAX));
    });
    refused!("events", EVENTS_MAX, Root<'_>, read_registration, |mut to| {
        sound(&mut to);
        to.init_unreported(over(EVENTS_MAX));
    });
    refused!("pins", PINS_MAX, Root<'_>, read_registration, |mut to| {
        sound(&mut to);
        to.init_pins(over(PINS_MAX));
    });
    refused!("shares", SOURCES_MAX, Root<'_>, read_registration, |mut to| {
        sound(&mut to);
        to.init_unreported(1).get(0).init_progress().init_shares(over(SOURCES_MAX));
    });
    refused!("failure text", FAILURE_TEXT_MAX, Root<'_>, read_registration, |mut to| {
        sound(&mut to);
        to.init_unreported(1).get(0).init_failed().init_why().set_text(long(FAILURE_TEXT_MAX).as_str());
    });
}

#[test]
fn peers_messages_beyond_a_bound_are_refused() {
    use peer::{read_request, read_response};
    use peer_capnp::{request, response};
    refused!("version", TEXT_MAX, request::Builder<'_>, read_request, |to| {
        to.init_introduce().set_version(long(TEXT_MAX).as_str());
    });
    refused!("workers", WORKERS_MAX, request::Builder<'_>, read_request, |to| {
        to.init_introduce().init_workers(over(WORKERS_MAX));
    });
    refused!("workers", WORKERS_MAX, response::Builder<'_>, read_response, |to| {
        to.init_introduction().init_workers(over(WORKERS_MAX));
    });
    refused!("other holders", HOLDERS_MAX, response::Builder<'_>, read_response, |to| {
        to.init_found().init_others(over(HOLDERS_MAX));
    });
    refused!("name", NAME_MAX, response::Builder<'_>, read_response, |to| {
        to.init_found().init_here().init_some().set_name(long(NAME_MAX).as_str());
    });
    refused!("chunk set", CHUNKS_MAX as usize / 8, response::Builder<'_>, read_response, |to| {
        to.init_found().init_here().init_some().init_held().init_bits(over(CHUNKS_MAX as usize / 8));
    });
    refused!("failure text", FAILURE_TEXT_MAX, response::Builder<'_>, read_response, |to| {
        to.init_refused().set_text(long(FAILURE_TEXT_MAX).as_str());
    });
}

#[test]
fn programs_messages_beyond_a_bound_are_refused() {
    use node::{read_request, read_response};
    use node_capnp::{request, response};
    refused!("name", NAME_MAX, request::Builder<'_>, read_request, |to| {
        to.init_put().set_name(long(NAME_MAX).as_str());
    });
    refused!("peers", HOLDERS_MAX, request::Builder<'_>, read_request, |to| {
        let mut get = to.init_get();
        get.set_content(&KEY);
        get.init_peers(over(HOLDERS_MAX));
    });
    refused!("policy changes", ASSIGNMENTS_MAX, request::Builder<'_>, read_request, |to| {
        to.init_policy_set(over(ASSIGNMENTS_MAX));
    });
    refused!("policy change", TEXT_MAX, request::Builder<'_>, read_request, |to| {
        to.init_policy_set(1).set(0, long(TEXT_MAX).as_str());
    });
    refused!("name", NAME_MAX, response::Builder<'_>, read_response, |to| {
        to.init_opened().set_name(long(NAME_MAX).as_str());
    });
    refused!("doors", WORKERS_MAX, response::Builder<'_>, read_response, |to| {
        to.init_opened().init_doors(over(WORKERS_MAX));
    });
    refused!("door path", TEXT_MAX, response::Builder<'_>, read_response, |to| {
        to.init_opened().init_doors(1).get(0).set_path(long(TEXT_MAX).as_str());
    });
    refused!("shares", SOURCES_MAX * WORKERS_MAX, response::Builder<'_>, read_response, |to| {
        to.init_job().init_shares(over(SOURCES_MAX * WORKERS_MAX));
    });
    refused!("damaged contents", DAMAGED_MAX, response::Builder<'_>, read_response, |to| {
        to.init_job().init_damaged(over(DAMAGED_MAX));
    });
    refused!("contents", LISTING_PAGE_MAX, response::Builder<'_>, read_response, |to| {
        to.init_contents(over(LISTING_PAGE_MAX));
    });
    refused!("ticket", TICKET_CHARS_MAX, response::Builder<'_>, read_response, |mut to| {
        to.set_ticket(long(TICKET_CHARS_MAX).as_str());
    });
    refused!("peers", LISTING_PAGE_MAX, response::Builder<'_>, read_response, |to| {
        to.init_peers(over(LISTING_PAGE_MAX));
    });
    refused!("history", HISTORY_MAX, response::Builder<'_>, read_response, |to| {
        to.init_history(over(HISTORY_MAX));
    });
    refused!("workers", WORKERS_MAX, response::Builder<'_>, read_response, |to| {
        to.init_workers(over(WORKERS_MAX));
    });
    refused!("counters", 256, response::Builder<'_>, read_response, |to| {
        to.init_workers(1).get(0).init_counters(over(256));
    });
    refused!("store failure", TEXT_MAX, response::Builder<'_>, read_response, |to| {
        let mut status = to.init_status();
        status.set_node(&KEY);
        status.set_store_failure(long(TEXT_MAX).as_str());
    });
    refused!("workers", WORKERS_MAX, response::Builder<'_>, read_response, |to| {
        let mut status = to.init_status();
        status.set_node(&KEY);
        status.init_workers(over(WORKERS_MAX));
    });
    let entries = 4 * crate::policy::KEYS.len();
    let many = read!(response::Builder<'_>, read_response, |to| {
        to.init_policy().init_entries(over(4 * crate::policy::KEYS.len()));
    });
    assert!(matches!(many, Err(CodecError::TooLong { what: "policy", max, .. }) if max == entries), "{many:?}");
}

#[test]
fn ids_and_addresses_of_another_length_are_refused() {
    let short = read!(peer_capnp::request::Builder<'_>, peer::read_request, |mut to| to.set_find(&[1; 31]));
    assert!(matches!(short, Err(CodecError::Length { found: 31, expected: 32, .. })), "{short:?}");
    let strange = read!(common::socket_address::Builder<'_>, super::common::read_address, |mut to| to.set_ip(&[1; 5]));
    assert!(matches!(strange, Err(CodecError::Length { found: 5, .. })), "{strange:?}");
}
