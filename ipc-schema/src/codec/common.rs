//! `common.capnp`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{CodecError, Result, bytes, checked, count, list, text};
use crate::address::{Endpoint, PeerAddress};
use crate::chunk_set::ChunkSet;
use crate::content::{CHAINING_VALUE_LEN, CHUNKS_MAX, ChainingValue};
use crate::failure::{FAILURE_TEXT_MAX, Failure, FailureCode};
use crate::generated::common_capnp as wire;
use crate::ids::{NodeId, Revision, WorkerIndex, WorkerKey};
use crate::policy::{KEYS, Policy, Revised};
use crate::worker::WORKERS_MAX;

/// Bytes of one policy key or value at most.
const POLICY_TEXT_MAX: usize = 4096;

pub(crate) fn write_failure(failure: &Failure, mut to: wire::failure::Builder<'_>) {
    to.set_code(failure.code.number());
    to.set_text(failure.text.as_str());
}

pub(crate) fn read_failure(from: wire::failure::Reader<'_>) -> Result<Failure> {
    let code = FailureCode::from_number(from.get_code());
    Ok(Failure::new(code, text("failure text", from.get_text()?, FAILURE_TEXT_MAX)?))
}

pub(crate) fn write_chunks(set: &ChunkSet, mut to: wire::chunk_set::Builder<'_>) {
    to.set_bound(set.bound());
    to.set_bits(&set.to_bytes());
}

pub(crate) fn read_chunks(from: wire::chunk_set::Reader<'_>) -> Result<ChunkSet> {
    let bits = from.get_bits()?;
    count("chunk set", bits.len(), CHUNKS_MAX as usize / 8)?;
    Ok(ChunkSet::from_bytes(from.get_bound(), bits)?)
}

pub(crate) fn write_address(address: SocketAddr, mut to: wire::socket_address::Builder<'_>) {
    match address.ip() {
        IpAddr::V4(ip) => to.set_ip(&ip.octets()),
        IpAddr::V6(ip) => to.set_ip(&ip.octets()),
    }
    to.set_port(address.port());
}

pub(crate) fn read_address(from: wire::socket_address::Reader<'_>) -> Result<SocketAddr> {
    let ip = from.get_ip()?;
    let ip: IpAddr = match ip.len() {
        4 => Ipv4Addr::from(bytes::<4>("IPv4 address", ip)?).into(),
        16 => Ipv6Addr::from(bytes::<16>("IPv6 address", ip)?).into(),
        found => return Err(CodecError::Length { what: "IP address", found, expected: 4 }),
    };
    Ok(SocketAddr::new(ip, from.get_port()))
}

pub(crate) fn write_optional(address: Option<SocketAddr>, mut to: wire::optional_address::Builder<'_>) {
    match address {
        None => to.set_none(()),
        Some(address) => write_address(address, to.init_some()),
    }
}

pub(crate) fn read_optional(from: wire::optional_address::Reader<'_>) -> Result<Option<SocketAddr>> {
    use wire::optional_address::{None, Some};
    match from.which().map_err(CodecError::unknown("optional address"))? {
        None(()) => Ok(Option::None),
        Some(address) => read_address(address?).map(Option::Some),
    }
}

pub(crate) fn write_endpoints<'a>(
    endpoints: &[Endpoint],
    init: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, wire::endpoint::Owned>,
) -> Result<()> {
    let mut to = init(count("workers", endpoints.len(), WORKERS_MAX)?);
    for (index, endpoint) in (0..).zip(endpoints) {
        write_endpoint(endpoint, to.reborrow().get(index));
    }
    Ok(())
}

pub(crate) fn read_endpoints(from: capnp::struct_list::Reader<'_, wire::endpoint::Owned>) -> Result<Vec<Endpoint>> {
    list("workers", from, WORKERS_MAX, read_endpoint)
}

pub(crate) fn write_endpoint(endpoint: &Endpoint, mut to: wire::endpoint::Builder<'_>) {
    to.set_worker(endpoint.worker.0);
    to.set_key(&endpoint.key.0);
    write_address(endpoint.address, to.init_address());
}

pub(crate) fn read_endpoint(from: wire::endpoint::Reader<'_>) -> Result<Endpoint> {
    Ok(Endpoint {
        worker: WorkerIndex(from.get_worker()),
        address: read_address(from.get_address()?)?,
        key: WorkerKey(bytes("worker key", from.get_key()?)?),
    })
}

pub(crate) fn write_peer(peer: &PeerAddress, mut to: wire::peer_address::Builder<'_>) {
    to.set_node(&peer.node.0);
    write_optional(peer.address, to.init_address());
}

pub(crate) fn read_peer(from: wire::peer_address::Reader<'_>) -> Result<PeerAddress> {
    Ok(PeerAddress { node: NodeId(bytes("node id", from.get_node()?)?), address: read_optional(from.get_address()?)? })
}

/// A policy travels as texts, so that the one list of keys is `policy::KEYS`.
pub(crate) fn write_policy(revised: &Revised, mut to: wire::policy::Builder<'_>) -> Result<()> {
    to.set_revision(revised.revision.0);
    let mut entries = to.init_entries(count("policy", KEYS.len(), KEYS.len())?);
    for (index, (key, value)) in (0..).zip(revised.policy.entries()) {
        let mut entry = entries.reborrow().get(index);
        entry.set_key(key.name);
        entry.set_value(checked("policy value", &value, POLICY_TEXT_MAX)?);
    }
    Ok(())
}

pub(crate) fn read_policy(from: wire::policy::Reader<'_>) -> Result<Revised> {
    /// A newer version may have more keys; the first unknown one is named, so there need not be room for all.
    const ENTRIES_MAX: usize = 4 * KEYS.len();
    let entries = from.get_entries()?;
    count("policy", entries.len() as usize, ENTRIES_MAX)?;
    let mut policy = Policy::default();
    for entry in entries {
        let key = text("policy key", entry.get_key()?, POLICY_TEXT_MAX)?;
        let value = text("policy value", entry.get_value()?, POLICY_TEXT_MAX)?;
        policy = policy.with(&key, &value)?;
    }
    Ok(Revised { revision: Revision(from.get_revision()), policy })
}

/// Chaining values one after another, `max` at most.
pub(crate) fn read_values(what: &'static str, data: &[u8], max: usize) -> Result<Vec<ChainingValue>> {
    let (values, rest) = data.as_chunks::<CHAINING_VALUE_LEN>();
    count(what, values.len(), max)?;
    if !rest.is_empty() {
        return Err(CodecError::Length { what: "chaining value", found: rest.len(), expected: CHAINING_VALUE_LEN });
    }
    Ok(values.to_vec())
}
