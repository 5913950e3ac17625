@0xb8d1c2f0a1e94c03;
# Two controllers, inside a Noise session that has proven who they are. Both sides may ask.

using Common = import "common.capnp";

interface Peer {
  call @0 (request :Request) -> (response :Response);
}

struct Introduction {
  version @0 :Text;
  listen @1 :Common.OptionalAddress;
  workers @2 :List(Common.Endpoint);
}

struct Request {
  union {
    introduce @0 :Introduction;
    ping @1 :UInt64;
    find @2 :Data;
    announce @3 :Announce;
  }
}

struct Announce { content @0 :Data; size @1 :UInt64; name @2 :Text; }

struct Response {
  union {
    introduction @0 :Introduction;
    pong @1 :UInt64;
    found @2 :Found;
    noted @3 :Void;
    refused @4 :Common.Failure;
  }
}

struct Found {
  here :union {
    nothing @0 :Void;
    some @1 :FoundHere;
  }
  others @2 :List(Common.PeerAddress);
}

struct FoundHere {
  size @0 :UInt64;
  held @1 :Common.ChunkSet;
  name @2 :Text;
  values @3 :Data;           # the whole manifest when it is short, else empty
}
