//! Name, unit and sentence of every published number.
//!
//! A worker's counters live in its named shared-memory segment, one 64-bit word each, in this order; the controller
//! sums them over workers, keeps the totals of those that ended, and exports them as Prometheus text.

/// One published number of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Its name: the thing, what happened to it, the unit last.
    pub name: &'static str,
    /// What it counts, in a sentence.
    pub help: &'static str,
    /// Whether it only grows (a counter) or moves both ways (a gauge).
    pub grows: bool,
}

macro_rules! counters {
    ($($(#[gauge $gauge:tt])? $id:ident $name:literal $help:literal;)*) => {
        /// A worker's counters, by place in the segment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Id { $(#[doc = $help] $id),* }

        /// Every counter, in the order of the segment's words.
        pub static ALL: &[Counter] = &[
            $(Counter { name: $name, help: $help, grows: !counters!(@gauge $($gauge)?) }),*
        ];
    };
    (@gauge) => { false };
    (@gauge $x:tt) => { true };
}

counters! {
    BytesPut "put_bytes" "Bytes that local programs put.";
    BytesRead "read_bytes" "Bytes that local programs read.";
    BytesFetched "fetched_bytes" "Verified bytes fetched from peers.";
    BytesServed "served_bytes" "Bytes of chunks sent to peers.";
    ChunksByStream "chunks_by_stream" "Chunks fetched by QUIC stream.";
    ChunksByFec "chunks_by_fec" "Chunks fetched as FEC symbols.";
    ChunksBad "chunks_bad" "Chunks from peers whose bytes did not match the content id.";
    SymbolsSent "symbols_sent" "FEC symbols sent.";
    SymbolsParitySent "symbols_parity_sent" "Of the FEC symbols sent, parity symbols.";
    SymbolsSentAgain "symbols_sent_again" "Of the FEC symbols sent, those that a requester asked for again.";
    SymbolsReceived "symbols_received" "FEC symbols received.";
    SymbolsRepaired "symbols_repaired" "Data symbols rebuilt from parity.";
    SymbolsAskedAgain "symbols_asked_again" "FEC symbols asked for again.";
    SymbolsUnused "symbols_unused" "Parity symbols received and not needed.";
    SymbolsRefused "symbols_refused" "Datagrams that were malformed, did not fit their transfer, or belonged to none.";
    RequestsServed "requests_served" "Chunk requests of peers answered with data.";
    RequestsByCopy "requests_by_copy" "Of the chunk requests answered, those begun by their copy because the first was late or lost.";
    RequestsRefused "requests_refused" "Chunk requests of peers refused.";
    PacketsSent "packets_sent" "QUIC packets sent to peers.";
    PacketsLost "packets_lost" "Of the QUIC packets sent, those that QUIC found lost.";
    PeersRefused "peers_refused" "QUIC connections refused because their key is not pinned, or because the peer has enough.";
    PeersProtocol "peers_protocol_errors" "QUIC connections closed because the peer broke the protocol.";
    RingsRefused "rings_refused" "Programs turned away at the door: wrong token, user or greeting.";
    RingsCorrupt "rings_corrupt" "Rings ended because the program wrote an impossible value.";
    ReadBad "read_chunks_bad" "Chunks found wrong when read back from the disk.";
    DiskFull "disk_full" "Writes refused because the disk or the quota is full.";
    #[gauge x] Jobs "jobs" "Jobs under way.";
    #[gauge x] Connections "connections" "QUIC connections to and from peers.";
    #[gauge x] BuffersFree "buffers_free" "Chunk buffers that are free.";
    BufferWaits "buffer_waits" "Times that work waited for a free chunk buffer.";
    DatagramsDropped "datagrams_dropped_by_fault" "Datagrams dropped by the fault switch.";
    EventsDropped "events_dropped" "Progress events left out because the controller was away.";
    #[gauge x] SocketBufferMissing "socket_buffer_missing_bytes" "Bytes of UDP socket buffer that the kernel refuses.";
    RequestsStalled "requests_stalled" "Chunk requests of peers given up because the peer took nothing, or did not go on, in time.";
    AnswersRefused "answers_refused" "Answers of peers that broke the protocol; each ends that peer's part in the fetch.";
    SymbolsLost "symbols_lost" "FEC symbols that must have been sent and had not come when their chunk was whole.";
    // At the end, so that a worker of before is still read right.
    ChunksFollowed "chunks_followed" "Chunks that local programs got as they came, unasked.";
    RequestsFromDisk "requests_from_disk" "Chunk requests of peers for which the disk was read: the page cache had not all of the chunk.";
    SymbolsLate "symbols_late" "FEC symbols that came after their chunk was whole: parity that it did without, and copies.";
}

/// Words in a worker's segment.
#[must_use]
pub fn count() -> usize {
    ALL.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_places_match() {
        let mut names: Vec<_> = ALL.iter().map(|counter| counter.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert_eq!(ALL[Id::BytesPut as usize].name, "put_bytes");
        assert_eq!(ALL[Id::EventsDropped as usize].name, "events_dropped");
        assert!(!ALL[Id::Jobs as usize].grows && ALL[Id::BytesPut as usize].grows);
    }
}
