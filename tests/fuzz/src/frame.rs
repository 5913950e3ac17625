//! Frames, as each side reads them: the server a stream of a request and repairs and datagrams that are copies of
//! requests, the requester a stream of an answer and marks and datagrams that are symbols.

use pangea_dataplane_core::frame::{
    ANSWER_LEN, Answer, FrameError, MARK_LEN, Mark, Part, REPAIR_LEN, REQUEST_LEN, Repair, Request, SYMBOL_HEADER_LEN,
    SymbolHeader,
};
use pangea_ipc::content::{CHUNK_SIZE, CONTENT_SIZE_MAX, Geometry};

/// The first byte chooses the reader; the rest is what it reads.
///
/// # Panics
/// When a frame that was read has a value that it must not have, or does not survive the wire.
pub fn run(data: &[u8]) {
    let Some((reader, bytes)) = data.split_first() else { return };
    match reader % 4 {
        0 => server_stream(bytes),
        1 => requester_stream(bytes),
        2 => copy(bytes),
        _ => symbol(bytes),
    }
}

fn server_stream(bytes: &[u8]) {
    let Some((request_bytes, mut bytes)) = bytes.split_first_chunk::<REQUEST_LEN>() else { return };
    let Ok(request) = Request::parse(request_bytes) else { return };
    check_request(request);
    while let Some((repair, rest)) = bytes.split_first_chunk::<REPAIR_LEN>() {
        bytes = rest;
        let Ok(repair) = Repair::parse(repair) else { return };
        assert_eq!(Repair::parse(&repair.to_bytes()), Ok(repair));
        let symbols: Vec<usize> = repair.symbols().collect();
        let ones: u32 = repair.missing.iter().map(|byte| byte.count_ones()).sum();
        assert!(!symbols.is_empty() && symbols.len() == ones as usize, "{symbols:?}");
        assert!(symbols.is_sorted_by(|a, b| a < b) && symbols.iter().all(|symbol| *symbol < 256), "{symbols:?}");
    }
}

fn requester_stream(bytes: &[u8]) {
    let Some((answer, mut bytes)) = bytes.split_first_chunk::<ANSWER_LEN>() else { return };
    let Ok(answer) = Answer::parse(answer) else { return };
    assert_eq!(Answer::parse(&answer.to_bytes()), Ok(answer));
    if let Answer::Stream { len } | Answer::Fec { len, .. } = answer {
        assert!(len <= CHUNK_SIZE, "{len}");
    }
    while let Some((mark, rest)) = bytes.split_first_chunk::<MARK_LEN>() {
        bytes = rest;
        assert_eq!(Mark::parse(*mark).to_bytes(), *mark);
    }
}

fn copy(datagram: &[u8]) {
    match Request::parse_copy(datagram) {
        Ok(request) => {
            assert_eq!(datagram.len(), REQUEST_LEN);
            check_request(request);
        }
        Err(FrameError::Length { len }) => assert!(len == datagram.len() && len != REQUEST_LEN),
        Err(_) => assert_eq!(datagram.len(), REQUEST_LEN),
    }
}

fn check_request(request: Request) {
    assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
    assert_eq!(Request::parse_copy(&request.to_bytes()), Ok(request));
    assert!(request.size <= CONTENT_SIZE_MAX && request.overhead_max_pct <= 100, "{request:?}");
    let geometry = Geometry::new(request.size).unwrap();
    let (number, count) = match request.part {
        Part::Chunk(chunk) => (chunk, geometry.chunk_count()),
        Part::Manifest(page) => (page, geometry.manifest_pages()),
    };
    assert!(number < count, "{request:?}");
}

fn symbol(datagram: &[u8]) {
    match SymbolHeader::parse(datagram) {
        Ok((header, symbol)) => {
            assert_eq!([&header.to_bytes()[..], symbol].concat(), datagram);
        }
        Err(FrameError::Length { len }) => assert!(len == datagram.len() && len < SYMBOL_HEADER_LEN),
        Err(_) => assert!(datagram.len() >= SYMBOL_HEADER_LEN),
    }
}
