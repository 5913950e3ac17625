@0xb8d1c2f0a1e94c04;
# A local program and its controller, over controller.sock.

using Common = import "common.capnp";

interface Node {
  call @0 (request :Request) -> (response :Response);
}

struct Request {
  union {
    put @0 :Put;
    get @1 :Get;
    watch @2 :Watch;
    cancel @3 :UInt64;
    list @4 :Data;           # start after this content; empty = from the first
    remove @5 :Data;
    pin @6 :Data;
    unpin @7 :Data;
    verify @8 :Data;         # empty = all
    ticket @9 :Ticket;
    peerAdd @10 :Common.PeerAddress;
    peerRemove @11 :Data;
    peers @12 :Void;
    policyShow @13 :Void;
    policySet @14 :List(Text);
    policyHistory @15 :Void;
    policyRollback @16 :UInt64;
    policyWatch @17 :UInt64;
    workers @18 :Void;
    workerAdd @19 :Void;
    workerDrain @20 :UInt16;
    status @21 :Void;
  }
}

struct Put {
  name @0 :Text;
  size :union {
    unknown @1 :Void;
    known @2 :UInt64;
  }
}

struct Get {
  content @0 :Data;
  peers @1 :List(Common.PeerAddress);
  range :union {
    whole @2 :Void;
    bytes @3 :ByteRange;
  }
}

struct ByteRange { start @0 :UInt64; end @1 :UInt64; }
struct Watch { job @0 :UInt64; seen @1 :UInt64; }
struct Ticket { content @0 :Data; validS @1 :UInt64; }

struct Response {
  union {
    done @0 :Void;
    opened @1 :Opened;
    job @2 :JobReport;
    contents @3 :List(ContentReport);
    ticket @4 :Text;
    peers @5 :List(PeerReport);
    policy @6 :Common.Policy;
    history @7 :List(Common.Policy);
    workers @8 :List(WorkerReport);
    status @9 :StatusReport;
    failed @10 :Common.Failure;
  }
}

struct Opened {
  job @0 :UInt64;
  size @1 :UInt64;
  name @2 :Text;
  doors @3 :List(Door);
}

struct Door { worker @0 :UInt16; path @1 :Text; token @2 :Data; }

enum JobState {
  running @0;
  done @1;
  failed @2;
}

struct JobReport {
  job @0 :UInt64;
  version @1 :UInt64;
  state @2 :JobState;
  failure :union {
    none @3 :Void;
    some @4 :Common.Failure;
  }
  content @5 :Data;          # empty = not known yet
  size @6 :UInt64;
  chunksWanted @7 :UInt32;
  chunksBefore @8 :UInt32;
  chunksHeld @9 :UInt32;
  chunksDurable @10 :UInt32;
  chunksBad @11 :UInt32;
  chunksLost @12 :UInt32;
  shares @13 :List(ShareReport);
  contentsDamaged @14 :UInt32;
  damaged @15 :List(Damage);
}

struct Damage {
  content @0 :Data;
  chunksBad @1 :UInt32;
  chunksLost @2 :UInt32;
  failure :union {
    none @3 :Void;           # repaired
    some @4 :Common.Failure;
  }
}

struct ShareReport {
  worker @0 :UInt16;
  node @1 :Data;
  bytes @2 :UInt64;
  chunksByStream @3 :UInt32;
  chunksByFec @4 :UInt32;
  symbolsReceived @5 :UInt64;
  symbolsRepaired @6 :UInt64;
  symbolsAskedAgain @7 :UInt64;
  parityUnused @8 :UInt64;
  chunksBad @9 :UInt32;
  symbolsSent @10 :UInt64;
  symbolsLost @11 :UInt64;
}

struct ContentReport {
  id @0 :Data;
  name @1 :Text;
  size @2 :UInt64;
  chunks @3 :UInt32;
  chunksHeld @4 :UInt32;
  pinned @5 :Bool;
  usedS @6 :UInt64;
}

enum PeerState {
  unknown @0;
  active @1;
  degraded @2;
  dead @3;
}

struct PeerReport {
  node @0 :Data;
  address @1 :Common.OptionalAddress;
  state @2 :PeerState;
  trouble @3 :Text;
  workers @4 :UInt16;
  latencyUs @5 :Int64;       # -1 = no sample yet, also below
  jitterUs @6 :Int64;
  lossBp @7 :Int64;
  throughputBps @8 :Int64;
  sampleAgeMs @9 :Int64;
  offences @10 :UInt32;
}

enum WorkerState {
  starting @0;
  running @1;
  draining @2;
  dead @3;
}

struct WorkerReport {
  worker @0 :UInt16;
  state @1 :WorkerState;
  pid @2 :UInt32;
  cpu @3 :Int32;             # -1 = not pinned
  address @4 :Common.OptionalAddress;
  revision @5 :UInt64;
  restarts @6 :UInt32;
  counters @7 :List(Counter);
}

struct Counter { name @0 :Text; value @1 :UInt64; }

struct StatusReport {
  node @0 :Data;
  version @1 :Text;
  pid @2 :UInt32;
  listen @3 :Common.OptionalAddress;
  metrics @4 :Common.OptionalAddress;
  revision @5 :UInt64;
  contents @6 :UInt64;
  storeBytes @7 :UInt64;
  storeQuotaBytes @8 :UInt64;   # the largest number = unlimited
  storeFailure @9 :Text;
  peersActive @10 :UInt32;
  peers @11 :UInt32;
  jobs @12 :UInt32;
  workers @13 :List(WorkerReport);
}
