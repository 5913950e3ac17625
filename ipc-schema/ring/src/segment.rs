//! The memory of one ring.
//!
//! A sealed memfd: its size can never change, so no access behind the checks can fault. It has no name, so nothing is
//! left anywhere when the processes die. Under loom the same words live on the heap.

#[cfg(loom)]
pub(crate) use heap::Segment;
#[cfg(not(loom))]
pub use mapped::Segment;

#[cfg(not(loom))]
mod mapped {
    use std::num::NonZeroUsize;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::ptr::NonNull;

    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::libc::{self, c_void};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    use nix::sys::stat::fstat;
    use nix::unistd::ftruncate;

    use crate::atomics::Ordering;
    use crate::error::RingError;
    use crate::layout::{HEADER_LEN, Header, MAGIC, VERSION, checked_capacity};

    const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

    /// A ring's memory, mapped.
    #[derive(Debug)]
    pub struct Segment {
        base: NonNull<c_void>,
        capacity: u32,
        fd: OwnedFd,
    }

    // SAFETY: the mapping belongs to no thread; what is shared in it is reached through atomics or copied bytewise.
    unsafe impl Send for Segment {}

    impl Segment {
        /// Fresh memory for a ring of `capacity` bytes.
        ///
        /// # Errors
        /// When the capacity is no power of two within bounds, or the system refuses.
        pub fn create(capacity: u32) -> Result<Self, RingError> {
            let capacity = checked_capacity(u64::from(capacity))?;
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            let fd = memfd_create("pangea-ring", flags).map_err(RingError::system("memfd_create"))?;
            let len = i64::from(capacity) + HEADER_LEN as i64;
            ftruncate(&fd, len).map_err(RingError::system("ftruncate of a ring"))?;
            fcntl(&fd, FcntlArg::F_ADD_SEALS(SEALS)).map_err(RingError::system("sealing a ring"))?;
            let segment = Self::map(fd, capacity)?;
            let header = segment.header();
            header.version.store(VERSION, Ordering::Relaxed);
            header.capacity.store(capacity, Ordering::Relaxed);
            // The other side gets the descriptor through a socket later, which orders these stores before its loads.
            header.magic.store(MAGIC, Ordering::Release);
            Ok(segment)
        }

        /// Memory that another process made. Nothing of it is believed before it was checked.
        ///
        /// # Errors
        /// [`RingError::NotARing`] when the seals, the size or the header are not those of a ring.
        pub fn open(fd: OwnedFd) -> Result<Self, RingError> {
            let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(|_| RingError::NotARing("not a memfd"))?;
            if !SealFlag::from_bits_truncate(seals).contains(SEALS) {
                return Err(RingError::NotARing("its size is not sealed"));
            }
            let stat = fstat(&fd).map_err(RingError::system("fstat of a ring"))?;
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let bytes = size.checked_sub(HEADER_LEN as u64).ok_or(RingError::NotARing("it is too small"))?;
            let capacity = checked_capacity(bytes)?;
            let segment = Self::map(fd, capacity)?;
            let header = segment.header();
            if header.magic.load(Ordering::Acquire) != MAGIC {
                return Err(RingError::NotARing("it has another magic"));
            }
            if header.version.load(Ordering::Relaxed) != VERSION {
                return Err(RingError::NotARing("it is of another version; use programs of the same version"));
            }
            if header.capacity.load(Ordering::Relaxed) != capacity {
                return Err(RingError::NotARing("its size is not the one in its header"));
            }
            Ok(segment)
        }

        fn map(fd: OwnedFd, capacity: u32) -> Result<Self, RingError> {
            let len = NonZeroUsize::MIN.saturating_add(HEADER_LEN + capacity as usize - 1);
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a new shared mapping at an address of the kernel's choice overlaps nothing of ours; the file is
            // at least `len` long (made so, or checked) and sealed, so no access within `len` can fault.
            let base = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &fd, 0) }
                .map_err(RingError::system("mmap of a ring"))?;
            Ok(Self { base, capacity, fd })
        }

        /// Bytes for records.
        pub(crate) fn capacity(&self) -> u32 {
            self.capacity
        }

        /// The descriptor, to be handed over.
        pub(crate) fn fd(&self) -> BorrowedFd<'_> {
            self.fd.as_fd()
        }

        pub(crate) fn header(&self) -> &Header {
            // SAFETY: `base` is page-aligned and HEADER_LEN long, which holds a `Header`; it is all atomics, for which
            // any bytes are valid and which other processes may change; the mapping lives as long as `self`.
            unsafe { self.base.cast::<Header>().as_ref() }
        }

        /// Where the record area has `len` bytes from `at`.
        fn area(&self, at: usize, len: usize) -> *mut u8 {
            assert!(at.checked_add(len).is_some_and(|end| end <= self.capacity as usize), "beyond the ring");
            // SAFETY: `at + len <= capacity` (asserted), and the mapping is HEADER_LEN + capacity bytes long.
            unsafe { self.base.as_ptr().cast::<u8>().add(HEADER_LEN + at) }
        }

        /// Copies `bytes` into the record area.
        pub(crate) fn copy_in(&self, at: usize, bytes: &[u8]) {
            let to = self.area(at, bytes.len());
            // SAFETY: `to` has `bytes.len()` bytes (see `area`), and `bytes` is our own memory, so they do not overlap.
            // The other process may write there at the same time: then the bytes it sees are its own affair.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
        }

        /// Copies out of the record area.
        pub(crate) fn copy_out(&self, at: usize, bytes: &mut [u8]) {
            let from = self.area(at, bytes.len());
            // SAFETY: as in `copy_in`; a process that scribbles meanwhile gives wrong bytes, which the caller judges.
            unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
        }

        /// Lets the kernel read from a file straight into the record area; says how many bytes.
        pub(crate) fn read_in(
            &self,
            at: usize,
            len: usize,
            file: BorrowedFd<'_>,
            from: Option<u64>,
        ) -> Result<usize, RingError> {
            use std::os::fd::AsRawFd;
            let to = self.area(at, len).cast::<c_void>();
            let fd = file.as_raw_fd();
            let got = match from.map(i64::try_from) {
                // SAFETY: `to` has `len` bytes (see `area`); the kernel writes them, no Rust reference sees them.
                None => unsafe { libc::read(fd, to, len) },
                // SAFETY: as above.
                Some(Ok(offset)) => unsafe { libc::pread(fd, to, len, offset) },
                Some(Err(_)) => return Ok(0), // beyond the end of any file
            };
            nix::errno::Errno::result(got)
                .map(|got| usize::try_from(got).unwrap_or(0))
                .map_err(RingError::system("reading a file into a ring"))
        }

        /// Lets the kernel write from the record area straight to a file; says how many bytes.
        pub(crate) fn write_out(
            &self,
            at: usize,
            len: usize,
            file: BorrowedFd<'_>,
            to: Option<u64>,
        ) -> Result<usize, RingError> {
            use std::os::fd::AsRawFd;
            let from = self.area(at, len).cast_const().cast::<c_void>();
            let fd = file.as_raw_fd();
            let put = match to.map(i64::try_from) {
                // SAFETY: `from` has `len` bytes (see `area`); the kernel reads them, no Rust reference sees them.
                None => unsafe { libc::write(fd, from, len) },
                // SAFETY: as above.
                Some(Ok(offset)) => unsafe { libc::pwrite(fd, from, len, offset) },
                Some(Err(_)) => {
                    return Err(RingError::System { what: "writing to a file", errno: nix::errno::Errno::EFBIG });
                }
            };
            nix::errno::Errno::result(put)
                .map(|put| usize::try_from(put).unwrap_or(0))
                .map_err(RingError::system("writing a file from a ring"))
        }
    }

    impl Drop for Segment {
        fn drop(&mut self) {
            // SAFETY: mapped in `map` with this length; nothing borrows from it beyond `self`.
            let unmapped = unsafe { munmap(self.base, HEADER_LEN + self.capacity as usize) };
            debug_assert!(unmapped.is_ok(), "munmap of an own mapping");
        }
    }
}

#[cfg(loom)]
mod heap {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    use crate::atomics::{AtomicU32, AtomicU64};
    use crate::layout::{Header, Line, MAGIC, RECORD_ALIGN, VERSION};

    /// A ring's memory on the heap, for loom: one cell for each place where a record can start.
    #[derive(Debug, Clone)]
    pub(crate) struct Segment(Arc<Memory>);

    #[derive(Debug)]
    struct Memory {
        header: Header,
        places: Vec<UnsafeCell<[u8; RECORD_ALIGN]>>,
    }

    // SAFETY: loom checks every access to the cells for races; that is what it is for.
    unsafe impl Sync for Memory {}
    // SAFETY: as above.
    unsafe impl Send for Memory {}

    fn line() -> Line {
        Line { position: AtomicU64::new(0), closed: AtomicU32::new(0), asleep: AtomicU32::new(0) }
    }

    impl Segment {
        pub(crate) fn create(capacity: u32) -> Self {
            let header = Header {
                magic: AtomicU64::new(MAGIC),
                version: AtomicU32::new(VERSION),
                capacity: AtomicU32::new(capacity),
                producer: line(),
                consumer: line(),
            };
            let places = (0..capacity as usize / RECORD_ALIGN).map(|_| UnsafeCell::new([0; RECORD_ALIGN])).collect();
            Self(Arc::new(Memory { header, places }))
        }

        pub(crate) fn capacity(&self) -> u32 {
            u32::try_from(self.0.places.len() * RECORD_ALIGN).unwrap_or(0)
        }

        pub(crate) fn header(&self) -> &Header {
            &self.0.header
        }

        pub(crate) fn copy_in(&self, at: usize, bytes: &[u8]) {
            let (place, from) = (at / RECORD_ALIGN, at % RECORD_ALIGN);
            // SAFETY: loom reports a race; the range is within the cell since loom tests use records of one place.
            self.0.places[place]
                .with_mut(|cell| unsafe { (&mut *cell)[from..from + bytes.len()].copy_from_slice(bytes) });
        }

        pub(crate) fn copy_out(&self, at: usize, bytes: &mut [u8]) {
            let (place, from) = (at / RECORD_ALIGN, at % RECORD_ALIGN);
            // SAFETY: as in `copy_in`.
            self.0.places[place].with(|cell| unsafe { bytes.copy_from_slice(&(&*cell)[from..from + bytes.len()]) });
        }
    }
}
