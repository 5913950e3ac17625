//! `peer.capnp`.

use super::common::{
    read_chunks, read_endpoints, read_failure, read_optional, read_peer, read_values, write_chunks, write_endpoints,
    write_failure, write_optional, write_peer,
};
use super::{CodecError, Result, bytes, checked, count, list, text};
use crate::generated::peer_capnp as wire;
use crate::ids::ContentId;
use crate::node::TEXT_MAX;
use crate::peer::{Found, FoundHere, HOLDERS_MAX, Introduction, MANIFEST_SHORT_MAX, PeerRequest, PeerResponse};
use crate::ticket::NAME_MAX;

fn write_introduction(value: &Introduction, mut to: wire::introduction::Builder<'_>) -> Result<()> {
    to.set_version(checked("version", &value.version, TEXT_MAX)?);
    write_optional(value.listen, to.reborrow().init_listen());
    write_endpoints(&value.workers, |count| to.init_workers(count))
}

fn read_introduction(from: wire::introduction::Reader<'_>) -> Result<Introduction> {
    Ok(Introduction {
        version: text("version", from.get_version()?, TEXT_MAX)?,
        listen: read_optional(from.get_listen()?)?,
        workers: read_endpoints(from.get_workers()?)?,
    })
}

pub(crate) fn write_request(request: &PeerRequest, mut to: wire::request::Builder<'_>) -> Result<()> {
    match request {
        PeerRequest::Introduce(introduction) => write_introduction(introduction, to.init_introduce())?,
        PeerRequest::Ping(number) => to.set_ping(*number),
        PeerRequest::Find(content) => to.set_find(&content.0),
        PeerRequest::Announce { content, size, name } => {
            let mut announce = to.init_announce();
            announce.set_name(checked("name", name, NAME_MAX)?);
            announce.set_content(&content.0);
            announce.set_size(*size);
        }
    }
    Ok(())
}

pub(crate) fn read_request(from: wire::request::Reader<'_>) -> Result<PeerRequest> {
    use wire::request::{Announce, Find, Introduce, Ping};
    Ok(match from.which().map_err(CodecError::unknown("peer request"))? {
        Introduce(introduction) => PeerRequest::Introduce(read_introduction(introduction?)?),
        Ping(number) => PeerRequest::Ping(number),
        Find(content) => PeerRequest::Find(ContentId(bytes("content id", content?)?)),
        Announce(announce) => {
            let announce = announce?;
            let content = ContentId(bytes("content id", announce.get_content()?)?);
            let name = text("name", announce.get_name()?, NAME_MAX)?;
            PeerRequest::Announce { content, size: announce.get_size(), name }
        }
    })
}

pub(crate) fn write_response(response: &PeerResponse, mut to: wire::response::Builder<'_>) -> Result<()> {
    match response {
        PeerResponse::Introduction(introduction) => write_introduction(introduction, to.init_introduction())?,
        PeerResponse::Pong(number) => to.set_pong(*number),
        PeerResponse::Found(found) => write_found(found, to.init_found())?,
        PeerResponse::Noted => to.set_noted(()),
        PeerResponse::Refused(failure) => write_failure(failure, to.init_refused()),
    }
    Ok(())
}

pub(crate) fn read_response(from: wire::response::Reader<'_>) -> Result<PeerResponse> {
    use wire::response::{Found, Introduction, Noted, Pong, Refused};
    Ok(match from.which().map_err(CodecError::unknown("peer response"))? {
        Introduction(introduction) => PeerResponse::Introduction(read_introduction(introduction?)?),
        Pong(number) => PeerResponse::Pong(number),
        Found(found) => PeerResponse::Found(read_found(found?)?),
        Noted(()) => PeerResponse::Noted,
        Refused(failure) => PeerResponse::Refused(read_failure(failure?)?),
    })
}

fn write_found(found: &Found, mut to: wire::found::Builder<'_>) -> Result<()> {
    let mut here = to.reborrow().get_here();
    match &found.here {
        None => here.set_nothing(()),
        Some(value) => {
            let mut here = here.init_some();
            here.set_size(value.size);
            here.set_name(checked("name", &value.name, NAME_MAX)?);
            count("short manifest", value.values.len(), MANIFEST_SHORT_MAX)?;
            here.set_values(value.values.as_flattened());
            write_chunks(&value.held, here.init_held());
        }
    }
    let mut others = to.init_others(count("other holders", found.others.len(), HOLDERS_MAX)?);
    for (index, other) in (0..).zip(&found.others) {
        write_peer(other, others.reborrow().get(index));
    }
    Ok(())
}

fn read_found(from: wire::found::Reader<'_>) -> Result<Found> {
    use wire::found::here::{Nothing, Some};
    let here = match from.get_here().which().map_err(CodecError::unknown("holding"))? {
        Nothing(()) => None,
        Some(here) => {
            let here = here?;
            Option::Some(FoundHere {
                size: here.get_size(),
                held: read_chunks(here.get_held()?)?,
                name: text("name", here.get_name()?, NAME_MAX)?,
                values: read_values("short manifest", here.get_values()?, MANIFEST_SHORT_MAX)?,
            })
        }
    };
    Ok(Found { here, others: list("other holders", from.get_others()?, HOLDERS_MAX, read_peer)? })
}
