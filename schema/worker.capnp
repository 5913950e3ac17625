@0xb8d1c2f0a1e94c02;
# Controller and worker. The worker connects to workers.sock and registers; from then on the controller commands and
# the worker reports.

using Common = import "common.capnp";

interface Registrar {
  register @0 (registration :Registration, worker :Worker) -> (result :RegisterResult);
}

interface Worker {
  perform @0 (command :Command) -> (reply :Reply);
}

interface Controller {
  report @0 (events :List(Event)) -> ();
}

struct RegisterResult {
  union {
    accepted @0 :Accepted;
    refused @1 :Common.Failure;
  }
}

struct Accepted {
  policy @0 :Common.Policy;
  node @1 :Data;
  controller @2 :Controller;
}

struct Registration {
  worker @0 :UInt16;
  pid @1 :UInt32;
  version @2 :Text;
  address @3 :Common.SocketAddress;
  key @4 :Data;
  door @5 :Text;
  counters @6 :Text;
  cpu @7 :Int32;             # -1 = not pinned
  revision @8 :UInt64;
  jobs @9 :List(JobStatus);
  unreported @10 :List(Event);
  pins @11 :List(Pin);       # whom an earlier controller had it let in
}

enum JobKind {
  put @0;
  read @1;
  fetch @2;
  verify @3;
}

struct JobStatus {
  job @0 :UInt64;
  kind @1 :JobKind;
  content @2 :Data;          # empty = not known yet
  chunksDone @3 :UInt32;
  chunksTotal @4 :UInt32;
}

struct Command {
  union {
    applyPolicy @0 :Common.Policy;
    setPins @1 :List(Pin);
    put @2 :PutPlan;
    allow @3 :Allow;
    read @4 :ReadPlan;
    fetch @5 :FetchPlan;
    setSources @6 :SetSources;
    cancel @7 :UInt64;
    remove @8 :Remove;
    inventory @9 :Data;      # start after this content; empty = from the first
    verify @10 :Verify;
    holdings @11 :Data;
    status @12 :Void;
    drain @13 :Void;
    shutdown @14 :Void;
    connect @15 :List(Common.Endpoint);
    manifestPage @16 :ManifestPage;
  }
}

struct Pin {
  key @0 :Data;
  node @1 :Data;
  knownRate @2 :UInt64;      # bytes a second; 0 = nothing is known of the path
  knownRttUs @3 :UInt32;
  knownLossPpm @4 :UInt32;
}
struct PutPlan { job @0 :UInt64; token @1 :Data; allowance @2 :UInt64; }
struct Allow { job @0 :UInt64; allowance @1 :UInt64; }
struct ReadPlan { job @0 :UInt64; token @1 :Data; content @2 :Data; }
struct FetchPlan { job @0 :UInt64; content @1 :Data; chunks @2 :Common.ChunkSet; sources @3 :List(Source); }
struct SetSources { job @0 :UInt64; sources @1 :List(Source); }
struct Remove { content @0 :Data; delete @1 :Bool; }
struct ManifestPage { content @0 :Data; size @1 :UInt64; page @2 :UInt32; from @3 :Common.Endpoint; }
struct Verify { job @0 :UInt64; content @1 :Data; }

struct Source {
  node @0 :Data;
  held @1 :Common.ChunkSet;
  endpoints @2 :List(Common.Endpoint);
}

struct Reply {
  union {
    done @0 :Void;
    applied @1 :Applied;
    inventory @2 :List(StoredContent);
    nothing @3 :Void;        # to holdings: nothing of it is here
    holdings @4 :Holdings;
    status @5 :List(JobStatus);
    refused @6 :Common.Failure;
    manifestPage @7 :Data;   # chaining values, 32 bytes each
  }
}

struct Applied {
  revision @0 :UInt64;
  cpu @1 :Int32;             # -1 = not pinned
}

struct Holdings { size @0 :UInt64; held @1 :Common.ChunkSet; }

struct StoredContent {
  content @0 :Data;
  size @1 :UInt64;
  chunksHeld @2 :UInt32;
  diskBytes @3 :UInt64;
}

struct Share {
  bytes @0 :UInt64;
  chunksByStream @1 :UInt32;
  chunksByFec @2 :UInt32;
  symbolsReceived @3 :UInt64;
  symbolsRepaired @4 :UInt64;
  symbolsAskedAgain @5 :UInt64;
  parityUnused @6 :UInt64;
  chunksBad @7 :UInt32;
  symbolsSent @8 :UInt64;
  symbolsLost @9 :UInt64;
}

struct Event {
  union {
    putDone @0 :PutDone;
    allowanceLow @1 :AllowanceLow;
    progress @2 :Progress;
    fetchDone @3 :UInt64;
    starved @4 :Starved;
    sourceLost @5 :SourceLost;
    failed @6 :JobFailed;
    readDone @7 :UInt64;
    verified @8 :Verified;
    path @9 :Path;
    storeFailed @10 :Common.Failure;
    drained @11 :Void;
  }
}

struct PutDone { job @0 :UInt64; content @1 :Data; size @2 :UInt64; }
struct AllowanceLow { job @0 :UInt64; stored @1 :UInt64; }
struct Progress {
  job @0 :UInt64;
  chunksHeld @1 :UInt32;
  chunksDurable @2 :UInt32;
  shares @3 :List(NodeShare);
}
struct NodeShare { node @0 :Data; share @1 :Share; }
struct Starved { job @0 :UInt64; missing @1 :Common.ChunkSet; }
struct SourceLost { job @0 :UInt64; node @1 :Data; why @2 :Common.Failure; }
struct JobFailed { job @0 :UInt64; why @1 :Common.Failure; }
struct Verified { job @0 :UInt64; content @1 :Data; good @2 :UInt32; bad @3 :Common.ChunkSet; }
struct Path {
  node @0 :Data;
  rttUs @1 :UInt32;
  packetsSent @2 :UInt64;
  packetsLost @3 :UInt64;
  bytesReceived @4 :UInt64;
  elapsedMs @5 :UInt32;
  rate @6 :UInt64;
  rttMinUs @7 :UInt32;
  lossPpm @8 :UInt32;        # what the path loses by itself
}
