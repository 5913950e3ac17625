//! What the worker has to tell the controller: bounded, in order, kept while the controller is away.
//!
//! Figures that a newer report replaces (progress, paths) are kept once for each job or peer, so only the ends of jobs
//! add up; their number is bounded by the jobs that there can be.

use std::cell::RefCell;
use std::collections::VecDeque;

use pangea_ipc::worker::{EVENTS_MAX, Event, JOBS_MAX};
use tokio::sync::Notify;

/// Events kept at most: an end for each job, and as much again for figures.
pub const QUEUE_MAX: usize = 4 * JOBS_MAX;

/// The queue. Belongs to the network thread.
#[derive(Debug, Default)]
pub struct Events {
    queue: RefCell<VecDeque<Event>>,
    news: Notify,
}

impl Events {
    /// Adds an event; says whether one had to be left out because the queue is full.
    pub fn push(&self, event: Event) -> bool {
        let mut queue = self.queue.borrow_mut();
        if let Some(older) = queue.iter_mut().find(|older| replaces(&event, older)) {
            *older = event;
            self.news.notify_one();
            return false;
        }
        let full = queue.len() >= QUEUE_MAX;
        if full {
            // Figures are worth less than ends; when there are only ends, the oldest has waited in vain longest.
            let victim = queue.iter().position(is_figure).unwrap_or(0);
            queue.remove(victim);
        }
        queue.push_back(event);
        self.news.notify_one();
        full
    }

    /// The next events to report, as soon as there is one; at most [`EVENTS_MAX`].
    pub async fn take(&self) -> Vec<Event> {
        loop {
            let batch = self.take_now();
            if !batch.is_empty() {
                return batch;
            }
            self.news.notified().await;
        }
    }

    /// What could be reported now; at most [`EVENTS_MAX`].
    pub fn take_now(&self) -> Vec<Event> {
        let mut queue = self.queue.borrow_mut();
        let count = queue.len().min(EVENTS_MAX);
        queue.drain(..count).collect()
    }

    /// Puts back what could not be reported, in front.
    pub fn put_back(&self, events: Vec<Event>) {
        let mut queue = self.queue.borrow_mut();
        for event in events.into_iter().rev() {
            if !queue.iter().any(|newer| replaces(newer, &event)) {
                queue.push_front(event);
            }
        }
        self.news.notify_one();
    }
}

fn is_figure(event: &Event) -> bool {
    matches!(event, Event::Progress { .. } | Event::Path { .. } | Event::AllowanceLow { .. })
}

fn replaces(newer: &Event, older: &Event) -> bool {
    match (newer, older) {
        (Event::Progress { job, .. }, Event::Progress { job: same, .. })
        | (Event::AllowanceLow { job, .. }, Event::AllowanceLow { job: same, .. })
        | (Event::Starved { job, .. }, Event::Starved { job: same, .. }) => job == same,
        // A path's figures are differences: two samples do not make one. They are few enough to be kept.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use pangea_ipc::ids::JobId;

    use super::*;

    fn progress(job: u64, chunks_held: u32) -> Event {
        Event::Progress { job: JobId(job), chunks_held, chunks_durable: 0, shares: Vec::new() }
    }

    #[test]
    fn newer_progress_replaces_older_in_its_place() {
        let events = Events::default();
        events.push(progress(1, 1));
        events.push(Event::FetchDone(JobId(2)));
        events.push(progress(1, 2));
        assert_eq!(events.take_now(), [progress(1, 2), Event::FetchDone(JobId(2))]);
    }

    #[test]
    fn what_could_not_be_reported_comes_first_again_unless_outdated() {
        let events = Events::default();
        events.push(progress(1, 1));
        events.push(Event::FetchDone(JobId(2)));
        let batch = events.take_now();
        events.push(progress(1, 9));
        events.put_back(batch);
        assert_eq!(events.take_now(), [Event::FetchDone(JobId(2)), progress(1, 9)]);
    }

    #[test]
    fn a_full_queue_gives_up_figures_before_ends() {
        let events = Events::default();
        assert!(!events.push(progress(u64::MAX, 0)));
        for job in 0..QUEUE_MAX as u64 - 1 {
            assert!(!events.push(Event::FetchDone(JobId(job))));
        }
        assert!(events.push(Event::FetchDone(JobId(77))));
        let mut all = Vec::new();
        loop {
            let batch = events.take_now();
            if batch.is_empty() {
                break;
            }
            all.extend(batch);
        }
        assert_eq!(all.len(), QUEUE_MAX);
        assert!(all.iter().all(|event| matches!(event, Event::FetchDone(_))));
    }
}
