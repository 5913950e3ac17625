//! Pins the worker to its CPU. Refusal is logged, not fatal: containers often allow few CPUs or none by name.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use pangea_ipc::ids::WorkerIndex;
use pangea_ipc::policy::Pinning;

/// The CPUs that this process may use as it was started; taken once, before any pinning narrows them.
#[derive(Debug, Clone)]
pub struct Allowed {
    set: CpuSet,
    cpus: Vec<u16>,
}

impl Allowed {
    /// Asks the system. `None` when it does not say.
    #[must_use]
    pub fn now() -> Option<Self> {
        let set = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let count = u16::try_from(CpuSet::count()).unwrap_or(u16::MAX);
        let cpus = (0..count).filter(|cpu| set.is_set(usize::from(*cpu)).unwrap_or(false)).collect();
        Some(Self { set, cpus })
    }

    /// Pins the calling thread as the policy says. Threads that it starts later inherit that: see [`Self::unpin`]. Says
    /// the CPU.
    pub fn pin(&self, worker: WorkerIndex, pinning: &Pinning) -> Option<u16> {
        let Some(cpu) = choose(worker, pinning, &self.cpus) else {
            self.unpin();
            return None;
        };
        let mut set = CpuSet::new();
        if let Err(error) = set.set(usize::from(cpu)) {
            tracing::warn!(%worker, cpu, %error, "not pinned: the system knows no such CPU; set workers.cpus");
            return None;
        }
        match sched_setaffinity(Pid::from_raw(0), &set) {
            Ok(()) => Some(cpu),
            Err(error) => {
                tracing::warn!(%worker, cpu, %error, "not pinned: the system refuses; set workers.cpus to CPUs that it may use, or off");
                None
            }
        }
    }

    /// Lets the calling thread run on every CPU that the process may use.
    pub fn unpin(&self) {
        if let Err(error) = sched_setaffinity(Pid::from_raw(0), &self.set) {
            tracing::warn!(%error, "a thread may still use one CPU only: the system refuses to give it the others back");
        }
    }
}

fn choose(worker: WorkerIndex, pinning: &Pinning, allowed: &[u16]) -> Option<u16> {
    let list = match pinning {
        Pinning::Off => return None,
        Pinning::Auto => allowed,
        Pinning::Cpus(cpus) => cpus,
    };
    list.get(usize::from(worker.0).checked_rem(list.len())?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_go_round_the_cpus() {
        let auto = |worker| choose(WorkerIndex(worker), &Pinning::Auto, &[2, 5]);
        assert_eq!([auto(0), auto(1), auto(2)], [Some(2), Some(5), Some(2)]);
        assert_eq!(choose(WorkerIndex(1), &Pinning::Cpus(vec![7, 9]), &[0]), Some(9));
        assert_eq!(choose(WorkerIndex(1), &Pinning::Off, &[0]), None);
        assert_eq!(choose(WorkerIndex(1), &Pinning::Auto, &[]), None);
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_refused_without_harm() {
        let thread = std::thread::spawn(|| {
            let allowed = Allowed::now().unwrap();
            let none = allowed.pin(WorkerIndex(0), &Pinning::Cpus(vec![u16::MAX]));
            let some = allowed.pin(WorkerIndex(0), &Pinning::Auto);
            (none, some, allowed.cpus)
        });
        let (none, some, cpus) = thread.join().unwrap();
        assert_eq!(none, None);
        assert_eq!(some, cpus.first().copied());
    }
}
