//! The model in simulated time, against arithmetic and queueing theory.

use super::*;
use crate::netlab::Queue;

const MS: Nanos = 1_000_000;
const S: Nanos = 1_000_000_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// 1250 bytes take exactly 0.1 ms.
fn link() -> Link {
    Link { rate_mbit: Some(100.0), delay: ms(25), ..Link::default() }
}

fn pipe(link: Link) -> Pipe<u64> {
    link.check().unwrap();
    let back = link.delay;
    Pipe::new(link, back, 1, 0)
}

/// Everything that arrives until then, with its time.
fn arrivals(pipe: &mut Pipe<u64>, until: Nanos) -> Vec<(u64, Nanos)> {
    let mut arrived = Vec::new();
    while let Some(departure) = pipe.poll(until) {
        if let Departure::Arrived { packet, at } = departure {
            arrived.push((packet, at));
        }
    }
    arrived
}

/// Offers packets of 1250 bytes at a steady pace and returns what arrives in the end.
fn stream(pipe: &mut Pipe<u64>, packets: u64, every: Nanos) -> Vec<(u64, Nanos)> {
    let mut arrived = Vec::new();
    for packet in 0..packets {
        pipe.offer(packet, 1250, false, packet * every);
        arrived.extend(arrivals(pipe, packet * every));
    }
    arrived.extend(arrivals(pipe, packets * every + 1000 * S));
    arrived
}

fn near(found: f64, wanted: f64, part: f64) {
    assert!((found - wanted).abs() <= wanted * part, "{found}, not {wanted}");
}

#[test]
fn a_lone_packet_takes_the_time_to_send_it_and_the_delay() {
    let mut pipe = pipe(link());
    assert_eq!(pipe.poll_timeout(), None);
    assert_eq!(pipe.offer(7, 1250, false, 3 * MS), Offer::Taken);
    assert_eq!(pipe.poll_timeout(), Some(28 * MS + MS / 10));
    assert_eq!(pipe.poll(28 * MS), None);
    let at = 28 * MS + MS / 10;
    assert_eq!(pipe.poll(at), Some(Departure::Arrived { packet: 7, at }));
    assert_eq!((pipe.poll(S), pipe.poll_timeout(), pipe.packets()), (None, None, 0));
}

#[test]
fn a_late_driver_gets_the_same_times_and_is_told_how_late_it_was() {
    let mut pipe = pipe(link());
    for packet in 0..10 {
        pipe.offer(packet, 1250, false, 0);
    }
    let arrived = arrivals(&mut pipe, 30 * MS);
    let wanted: Vec<_> = (0..10).map(|packet| (packet, 25 * MS + (packet + 1) * MS / 10)).collect();
    assert_eq!(arrived, wanted);
    let counters = pipe.counters(30 * MS);
    assert_eq!(counters.late_max, Duration::from_micros(4900));
    assert_eq!(counters.late_mean(), Duration::from_micros(4450));
}

#[test]
fn an_overloaded_link_sends_at_its_rate_and_drops_the_rest() {
    // 1.5 times the rate for two seconds.
    let mut pipe = pipe(link());
    let arrived = stream(&mut pipe, 30_000, MS / 15);
    let counters = pipe.counters(2 * S);
    let time = arrived.last().unwrap().1 - arrived[0].1;
    near((arrived.len() - 1) as f64 * 1250.0 * 8.0 / time as f64 * 1e3, 100.0, 0.0001);
    assert_eq!(counters.sent_packets + counters.dropped_packets, 30_000);
    // The queue (500 packets) fills up first; a third is dropped from then on.
    near(counters.dropped_packets as f64, 30_000.0 - 20_000.0 - 500.0, 0.001);
    assert_eq!(counters.queue_bytes_max, 625_000);
}

#[test]
fn a_queue_holds_what_it_may_and_one_packet_always() {
    let mut small = pipe(Link { queue: Queue::Bytes(3000), ..link() });
    let offers: Vec<_> = (0..4).map(|packet| small.offer(packet, 1250, false, 0)).collect();
    assert_eq!(offers, [Offer::Taken, Offer::Taken, Offer::Dropped, Offer::Dropped]);
    assert_eq!(small.offer(4, 500, false, 0), Offer::Taken, "a smaller one still fits");
    assert_eq!(arrivals(&mut small, S).iter().map(|arrived| arrived.0).collect::<Vec<_>>(), [0, 1, 4]);
    let mut none = pipe(Link { queue: Queue::Bytes(0), ..link() });
    assert_eq!(none.offer(0, 1250, false, 0), Offer::Taken);
    assert_eq!(none.offer(1, 1250, false, MS / 20), Offer::Dropped);
    assert_eq!(none.offer(2, 1250, false, MS / 10), Offer::Taken);
}

#[test]
fn the_mean_queue_is_averaged_over_time() {
    // Two packets at once: two for 0.1 ms, one for 0.1 ms, none until 1 ms.
    let mut two = pipe(link());
    two.offer(0, 1250, false, 0);
    two.offer(1, 1250, false, 0);
    near(two.counters(MS).queue_bytes_mean(), 375.0, 1e-9);

    // Arrivals by chance (Poisson) at 80 % of the rate, all of one size: by theory (M/D/1) the link holds
    // 0.8 + 0.8^2 / (2 * 0.2) = 2.4 packets on average.
    let mut pipe = pipe(Link { delay: Duration::ZERO, ..link() });
    let mut chance = Chance::new(11, 0);
    let (mut now, wanted) = (0.0, 2.4 * 1250.0);
    for packet in 0..400_000 {
        now += -(1.0 - chance.share()).ln() * 0.1 * MS as f64 / 0.8;
        pipe.offer(packet, 1250, false, now as Nanos);
        arrivals(&mut pipe, now as Nanos);
    }
    near(pipe.counters(now as Nanos).queue_bytes_mean(), wanted, 0.05);
}

#[test]
fn without_a_rate_there_is_no_queue() {
    let mut pipe = pipe(Link { rate_mbit: None, ..link() });
    for packet in 0..5000 {
        assert_eq!(pipe.offer(packet, 1250, false, 0), Offer::Taken);
    }
    let arrived = arrivals(&mut pipe, 25 * MS);
    assert_eq!(arrived.len(), 5000);
    assert!(arrived.iter().enumerate().all(|(index, &arrived)| arrived == (index as u64, 25 * MS)));
}

#[test]
fn lost_packets_have_used_their_share_of_the_link() {
    let mut pipe = pipe(Link { loss_pct: 50.0, ..link() });
    let arrived = stream(&mut pipe, 20_000, MS / 10);
    near(arrived.len() as f64, 10_000.0, 0.03);
    // Each arrives exactly when it would without loss.
    assert!(arrived.iter().all(|&(packet, at)| at == (packet + 1) * MS / 10 + 25 * MS));
    let counters = pipe.counters(1010 * S);
    assert_eq!(counters.sent_packets, 20_000);
    assert_eq!(counters.lost_packets + counters.delivered_packets, 20_000);
    assert_eq!(pipe.packets(), 0);
}

#[test]
fn the_seed_fixes_which_packets_are_lost_whatever_the_times() {
    let run = |seed, every, jitter| {
        let lossy = Link { loss_pct: 20.0, burst: Some(3.0), jitter, queue: Queue::Bytes(1 << 30), ..link() };
        let mut arrived: Vec<_> = stream(&mut Pipe::new(lossy, ms(25), seed, 0), 2000, every);
        arrived.sort_unstable();
        arrived.iter().map(|arrived| arrived.0).collect::<Vec<_>>()
    };
    assert_eq!(run(5, MS, ms(0)), run(5, MS / 100, ms(20)));
    assert_ne!(run(5, MS, ms(0)), run(6, MS, ms(0)));
}

#[test]
fn jitter_spreads_evenly_around_the_delay() {
    let mut pipe = pipe(Link { jitter: ms(10), reorder: true, ..link() });
    let arrived = stream(&mut pipe, 50_000, MS / 5);
    let delays: Vec<_> = arrived.iter().map(|&(packet, at)| (at - packet * MS / 5) as f64 / 1e6 - 0.1).collect();
    let (low, high) = delays.iter().fold((f64::MAX, f64::MIN), |(low, high), &ms| (low.min(ms), high.max(ms)));
    assert!((15.0..15.1).contains(&low) && (34.9..=35.0).contains(&high), "{low} {high}");
    near(delays.iter().sum::<f64>() / delays.len() as f64, 25.0, 0.005);
    let overtaken = arrived.windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
    assert!(overtaken > 10_000, "{overtaken}");
    assert!(arrived.windows(2).all(|pair| pair[0].1 <= pair[1].1), "they come in the order of arrival");
}

#[test]
fn without_reorder_nothing_overtakes_not_even_when_the_delay_falls() {
    let mut pipe = pipe(Link { jitter: ms(10), ..link() });
    let mut arrived = Vec::new();
    for packet in 0..2000 {
        let now = packet * MS / 5;
        if packet == 1000 {
            pipe.change(Link { delay: ms(1), jitter: ms(0), ..link() }, ms(1), now);
        }
        pipe.offer(packet, 1250, false, now);
        arrived.extend(arrivals(&mut pipe, now));
    }
    arrived.extend(arrivals(&mut pipe, 10 * S));
    assert_eq!(arrived.len(), 2000);
    assert!(arrived.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
    assert_eq!(arrived[1999].1, 1999 * MS / 5 + MS + MS / 10, "the new delay holds in the end");
}

#[test]
fn a_change_of_rate_holds_from_its_moment_also_for_the_packet_being_sent() {
    let mut pipe = pipe(Link { delay: Duration::ZERO, queue: Queue::Bytes(1 << 20), ..link() });
    for packet in 0..3 {
        pipe.offer(packet, 1250, false, 0);
    }
    // Half of the first has gone; the other half and the rest take ten times as long.
    pipe.change(Link { rate_mbit: Some(10.0), ..pipe.link().clone() }, ms(0), MS / 20);
    assert_eq!(
        arrivals(&mut pipe, 100 * MS),
        [(0, MS / 20 + MS / 2), (1, MS / 20 + MS * 3 / 2), (2, MS / 20 + MS * 5 / 2)]
    );
    // No rate at all lets everything go at once.
    for packet in 3..6 {
        pipe.offer(packet, 1250, false, 200 * MS);
    }
    pipe.change(Link { rate_mbit: None, ..pipe.link().clone() }, ms(0), 200 * MS + 1);
    assert_eq!(arrivals(&mut pipe, 300 * MS), [(3, 200 * MS + 1), (4, 200 * MS + 1), (5, 200 * MS + 1)]);
}

#[test]
fn a_change_of_delay_and_loss_holds_for_packets_sent_after_it() {
    let mut pipe = pipe(link());
    pipe.offer(0, 1250, false, 0);
    pipe.change(Link { delay: ms(40), loss_pct: 100.0, ..link() }, ms(25), MS);
    pipe.offer(1, 1250, false, MS);
    assert_eq!(pipe.poll(MS + MS / 10), Some(Departure::Lost { packet: 1 }));
    assert_eq!(arrivals(&mut pipe, S), [(0, 25 * MS + MS / 10)]);
    pipe.change(Link { delay: ms(40), ..link() }, ms(25), S);
    pipe.offer(2, 1250, false, S);
    assert_eq!(arrivals(&mut pipe, 2 * S), [(2, S + 40 * MS + MS / 10)]);
}

#[test]
fn the_queue_follows_the_rate_and_what_is_in_it_stays() {
    let mut pipe = pipe(link());
    for packet in 0..500 {
        assert_eq!(pipe.offer(packet, 1250, false, 0), Offer::Taken);
    }
    assert_eq!(pipe.offer(500, 1250, false, 0), Offer::Dropped);
    pipe.change(Link { rate_mbit: Some(10.0), ..link() }, ms(25), 0);
    assert_eq!(pipe.offer(501, 1250, false, 440 * MS), Offer::Dropped, "60 are left, room is for 50");
    assert_eq!(pipe.offer(502, 1250, false, 460 * MS), Offer::Taken, "40 are left");
    assert_eq!(arrivals(&mut pipe, 10 * S).len(), 501);
}

#[test]
fn a_long_queue_marks_packets_that_understand_it() {
    let mut pipe = pipe(Link { ecn_bytes: Some(2500), ..link() });
    let offers: Vec<_> = (0..5).map(|packet| pipe.offer(packet, 1250, packet != 3, 0)).collect();
    assert_eq!(offers, [Offer::Taken, Offer::Taken, Offer::Taken, Offer::Taken, Offer::Marked]);
    assert_eq!(pipe.offer(5, 1250, true, 10 * MS), Offer::Taken, "the queue has emptied");
    assert_eq!(pipe.counters(10 * MS).marked_packets, 1);
    assert_eq!(arrivals(&mut pipe, S).len(), 6);
}
