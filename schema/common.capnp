@0xb8d1c2f0a1e94c01;
# What the other three schemas share. Every length has a bound; the reader of a message checks it.

struct Failure {
  code @0 :UInt16;     # never changes meaning; unknown ones are internal failures
  text @1 :Text;       # for people, at most 1024 bytes
}

struct ChunkSet {
  bound @0 :UInt32;    # chunks of the content; every member is below it
  bits @1 :Data;       # chunk i is bit i % 8 of byte i / 8
}

struct SocketAddress {
  ip @0 :Data;         # 4 or 16 bytes, network order
  port @1 :UInt16;
}

struct OptionalAddress {
  union {
    none @0 :Void;
    some @1 :SocketAddress;
  }
}

struct Endpoint {
  worker @0 :UInt16;
  address @1 :SocketAddress;
  key @2 :Data;        # Ed25519 public key, 32 bytes
}

struct PeerAddress {
  node @0 :Data;       # X25519 public key, 32 bytes
  address @1 :OptionalAddress;
}

struct Policy {
  revision @0 :UInt64;
  entries @1 :List(Entry);

  struct Entry {
    key @0 :Text;
    value @1 :Text;
  }
}
