//! The controller on simulated paths: the cases that this project promises, and some that must not go wrong.

use super::simulation::{Chance, Link, Load, MTU, Simulation};
use super::*;

const PLAIN: Link =
    Link { mbit: 100.0, rtt_ms: 50.0, loss: 0.0, burst: 1.0, queue: 1.0, marks_above: f64::INFINITY, jitter_ms: 0.0 };

fn mbit(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 * 8.0 / 1e6 / seconds
}

/// Goodput of one flow over the whole of `seconds`, as a share of what the link lets through.
fn share(link: Link, seconds: f64, seed: u64, known: Option<Known>) -> f64 {
    let mut simulation = Simulation::new(link, &[(0.0, Load::Endless)], seed, known);
    let bytes = simulation.run_until(seconds)[0];
    mbit(bytes, seconds) / (link.mbit * (1.0 - link.loss))
}

#[test]
fn random_loss_costs_nothing() {
    for loss in [0.0, 0.001, 0.01, 0.02, 0.05, 0.1] {
        for seed in 1..4 {
            let share = share(Link { loss, ..PLAIN }, 5.5, seed, None);
            assert!(share > 0.93, "loss {loss}: {share}");
        }
    }
}

#[test]
fn bursts_of_losses_cost_nothing() {
    for loss in [0.02, 0.05] {
        for seed in 1..4 {
            let share = share(Link { loss, burst: 8.0, ..PLAIN }, 5.5, seed, None);
            assert!(share > 0.93, "loss {loss}: {share}");
        }
    }
}

#[test]
fn a_long_fast_path_is_filled_soon_and_sooner_when_it_is_known() {
    let link = Link { mbit: 300.0, rtt_ms: 150.0, loss: 0.01, ..PLAIN };
    let seconds = 128.0 * 1.048_576 * 8.0 / (300.0 * 0.99);
    let fresh = share(link, seconds / 0.8, 1, None);
    assert!(fresh > 0.8, "{fresh}");
    let known = Known { rate: 297e6 / 8.0, rtt: Duration::from_millis(150), loss: 0.01 };
    let known = share(link, seconds / 0.88, 1, Some(known));
    assert!(known > 0.88, "{known}");
    let satellite = Link { mbit: 20.0, rtt_ms: 300.0, loss: 0.03, ..PLAIN };
    let satellite = share(satellite, 16.0 * 1.048_576 * 8.0 / 20.0 / 0.85, 1, None);
    assert!(satellite > 0.85, "{satellite}");
}

/// The first answer on a fresh connection went without parity, whatever the path had lost before.
#[test]
fn what_a_path_lost_before_is_believed_until_it_shows_otherwise() {
    let known = Known { rate: 100e6 / 8.0, rtt: Duration::from_millis(50), loss: 0.05 };
    let mut simulation = Simulation::new(PLAIN, &[(0.0, Load::Endless)], 1, Some(known));
    assert!((simulation.control(0).loss().share - 0.05).abs() < 1e-6);
    simulation.run_until(3.0);
    assert!(simulation.control(0).loss().share < 0.002, "{:?}", simulation.control(0).loss());
}

/// Of 0.1, all of the slack is more than the queue holds, and at 50 ms it stays: 16 % overflow, since the receiver acknowledges
/// within a millisecond as the transport does.
#[test]
fn queues_stay_short_and_short_queues_are_not_flooded() {
    for (queue, overflow_max) in [(1.0, 0.005), (0.25, 0.015), (0.1, 0.17)] {
        let link = Link { queue, ..PLAIN };
        let mut simulation = Simulation::new(link, &[(0.0, Load::Endless)], 1, None);
        let bytes = simulation.run_until(20.0)[0];
        let (share, overflow, mean) = (mbit(bytes, 20.0) / 100.0, simulation.overflow(), simulation.mean_queue());
        assert!(share > 0.9, "queue {queue}: {share}");
        assert!(overflow < overflow_max, "queue {queue}: {overflow} of the packets overflowed");
        assert!(mean < 0.5, "queue {queue}: {mean}");
    }
}

/// The slack for pauses of hosts is more than such queues hold. It overflowed in low rounds too, was taken for the path's loss,
/// and that was added to the window: 39 to 77 % of the packets were sent for nothing.
#[test]
fn short_queues_of_short_paths_are_not_flooded_either() {
    for (rate, rtt_ms, queue) in
        [(100.0, 2.0, 1.0), (100.0, 5.0, 1.0), (100.0, 5.0, 0.5), (100.0, 10.0, 0.5), (1000.0, 1.0, 1.0)]
    {
        for (loss, share_min, overflow_max) in [(0.0, 0.93, 0.1), (0.05, 0.85, 0.16)] {
            let link = Link { mbit: rate, rtt_ms, queue, loss, ..PLAIN };
            let mut simulation = Simulation::new(link, &[(0.0, Load::Endless)], 1, None);
            let share = mbit(simulation.run_until(6.0)[0], 6.0) / (rate * (1.0 - loss));
            let (overflow, shown) = (simulation.overflow(), simulation.control(0).loss().share);
            assert!(share > share_min, "{link:?}: {share}");
            assert!(overflow < overflow_max, "{link:?}: {overflow} of the packets overflowed");
            assert!((shown - loss).abs() < 0.06, "{link:?}: {shown} shown as the path's loss");
            assert!(loss > 0.0 || shown < 0.002, "{link:?}: {shown} is loss enough for parity");
        }
    }
}

/// The eight packets on top are a third of a second on a slow path, and were taken for a path that had become longer: 17 to 29 % of
/// the packets overflowed, of two flows half, and a rival was left 4 to 8 %.
#[test]
fn slow_paths_are_not_flooded() {
    for (rate, rtt_ms) in [(2.0, 80.0), (5.0, 30.0), (10.0, 20.0)] {
        let link = Link { mbit: rate, rtt_ms, ..PLAIN };
        let run = |flows: &[(f64, Load)]| {
            let mut simulation = Simulation::new(link, flows, 1, None);
            simulation.run_until(10.0);
            let carried = simulation.run_until(40.0).iter().map(|bytes| mbit(*bytes, 30.0) / rate).collect::<Vec<_>>();
            (carried, simulation.overflow())
        };
        let (one, overflow) = run(&[(0.0, Load::Endless)]);
        assert!(one[0] > 0.97 && overflow < 0.04, "{link:?}: {one:?}, {overflow} overflowed");
        let (two, overflow) = run(&[(0.0, Load::Endless), (1.0, Load::Endless)]);
        assert!(two[0].min(two[1]) > 0.25 && overflow < 0.22, "{link:?}: {two:?}, {overflow} overflowed");
        // Both have cycles of many seconds: what one start shows is chance.
        let rivals: Vec<_> =
            (1..7).map(|start| run(&[(0.0, Load::CubicRival), (0.7 * f64::from(start), Load::Endless)]).0).collect();
        for flow in 0..2 {
            let mean = rivals.iter().map(|shares| shares[flow]).sum::<f64>() / rivals.len() as f64;
            let least = rivals.iter().map(|shares| shares[flow]).fold(1.0, f64::min);
            assert!(mean > 0.25 && least > 0.15, "{link:?}: {rivals:?}");
        }
    }
}

/// Packets that wait for a late one before them take longer than the earliest by twice the jitter, and a window for the earliest
/// let the rate fall: to 1 % at 1 Gbit/s and 10 ms, to 45 % at 100 Mbit/s, and start-up ended at the first late one.
#[test]
fn a_path_that_delays_unevenly_is_filled() {
    for (jitter_ms, rate, rtt_ms, first) in [
        (5.0, 100.0, 50.0, 0.8),
        (10.0, 100.0, 50.0, 0.8),
        (10.0, 20.0, 50.0, 0.8),
        (10.0, 20.0, 300.0, 0.6),
        (5.0, 100.0, 10.0, 0.8),
        (10.0, 300.0, 100.0, 0.6),
        (10.0, 1000.0, 50.0, 0.6),
        (20.0, 100.0, 100.0, 0.2),
    ] {
        for seed in 1..4 {
            let link = Link { mbit: rate, rtt_ms, jitter_ms, ..PLAIN };
            let mut simulation = Simulation::new(link, &[(0.0, Load::Endless)], seed, None);
            let beginning = mbit(simulation.run_until(1.5)[0], 1.5) / rate;
            simulation.run_until(5.0);
            let then = mbit(simulation.run_until(15.0)[0], 10.0) / rate;
            let (overflow, queue) = (simulation.overflow(), simulation.mean_queue());
            assert!(beginning > first, "{link:?}, seed {seed}: {beginning} in the first 1.5 s");
            assert!(then > 0.85, "{link:?}, seed {seed}: {then}");
            assert!(overflow < 0.05 && queue < 1.0, "{link:?}, seed {seed}: {overflow} overflowed, queue {queue}");
        }
    }
}

#[test]
fn two_flows_share_a_link() {
    for (seed, second) in (1..).zip([0.0, 1.0, 3.0, 5.0]) {
        let mut simulation = Simulation::new(PLAIN, &[(0.0, Load::Endless), (second, Load::Endless)], seed, None);
        simulation.run_until(second + 20.0);
        let shares = simulation.run_until(second + 30.0);
        let (a, b) = (shares[0] as f64, shares[1] as f64);
        let jain = (a + b).powi(2) / (2.0 * (a * a + b * b));
        assert!(jain > 0.95, "second at {second} s: {a} and {b}: {jain}");
        assert!(mbit(shares[0] + shares[1], 10.0) > 92.0);
        assert!(simulation.mean_queue() < 1.0, "{}", simulation.mean_queue());
    }
}

/// What the queue that others fill lost was taken for the path's own loss, and made up for: 31 to 45 % overflowed.
#[test]
fn several_flows_do_not_flood_their_queue() {
    for (rate, rtt_ms, count, overflow_max) in [(50.0, 20.0, 2, 0.2), (100.0, 50.0, 3, 0.2), (300.0, 30.0, 4, 0.25)] {
        for seed in 1..4_u32 {
            let link = Link { mbit: rate, rtt_ms, ..PLAIN };
            let flows: Vec<_> = (0..count).map(|nth| (0.37 * f64::from(nth * seed), Load::Endless)).collect();
            let mut simulation = Simulation::new(link, &flows, seed.into(), None);
            let carried: u64 = simulation.run_until(20.0).iter().sum();
            let (share, overflow) = (mbit(carried, 20.0) / rate, simulation.overflow());
            assert!(
                share > 0.95 && overflow < overflow_max,
                "{count} flows, {link:?}, seed {seed}: {share}, {overflow} overflowed"
            );
        }
    }
}

/// The usual round trip scatters by its own length, and so do the rates sampled over it: three of twelve had 0.62 to 0.69 of the
/// path, and of the others 21 to 45 % overflowed.
#[test]
fn slow_paths_that_delay_unevenly_are_filled_and_not_flooded() {
    let link = Link { mbit: 5.0, rtt_ms: 30.0, jitter_ms: 10.0, ..PLAIN };
    for seed in 1..13 {
        let mut simulation = Simulation::new(link, &[(0.0, Load::Endless)], seed, None);
        let share = mbit(simulation.run_until(12.0)[0], 12.0) / link.mbit;
        let overflow = simulation.overflow();
        assert!(share > 0.93 && overflow < 0.2, "seed {seed}: {share}, {overflow} overflowed");
    }
}

/// A host that was slow for moments had its queue taken for that of others, and room was left to them when it had gone: a path of
/// 0.6 GB/s went on with 4 MB/s, eight packets at a time, for minutes.
#[test]
fn moments_of_a_slow_host_do_not_slow_down_a_short_path() {
    for (rtt_ms, queue) in [(0.05, 160.0), (0.2, 40.0), (1.0, 8.0)] {
        let link = Link { mbit: 1000.0, rtt_ms, queue, ..PLAIN };
        for seed in 1..4 {
            let (mut chance, mut at) = (Chance(seed), 0.3);
            let mut simulation = Simulation::new(link, &[(0.0, Load::Endless)], seed, None);
            for _ in 0..10 {
                for _ in 0..10 {
                    let share = 0.1 + 0.9 * chance.next().powi(2);
                    simulation.set_link(Link { mbit: link.mbit * share, queue: queue / share, ..link });
                    at += 0.03 * chance.next();
                    simulation.run_until(at);
                    simulation.set_link(link);
                    at += 0.02 * chance.next();
                    simulation.run_until(at);
                }
                at += 0.3;
                simulation.run_until(at);
                let filled = mbit(simulation.run_until(at + 0.2)[0], 0.2) / link.mbit;
                at += 0.2;
                assert!(filled > 0.9, "{link:?}, seed {seed}: {filled} filled 0.3 s after");
            }
        }
    }
}

#[test]
fn changes_of_rate_and_delay_are_followed() {
    let mut simulation = Simulation::new(PLAIN, &[(0.0, Load::Endless)], 1, None);
    simulation.run_until(10.0);
    simulation.set_link(Link { mbit: 30.0, queue: 3.3, ..PLAIN });
    simulation.run_until(13.0);
    let slow = mbit(simulation.run_until(16.0)[0], 3.0);
    assert!(slow > 0.85 * 30.0, "{slow}");
    simulation.set_link(PLAIN);
    simulation.run_until(19.0);
    let fast = mbit(simulation.run_until(22.0)[0], 3.0);
    assert!(fast > 85.0, "{fast}");
    simulation.set_link(Link { rtt_ms: 150.0, ..PLAIN });
    simulation.run_until(25.0);
    let far = mbit(simulation.run_until(28.0)[0], 3.0);
    assert!(far > 85.0, "{far}");
}

/// Whole transfers sometimes went at half the rate: a keep-alive or handshake packet was alone in its round, was lost, and
/// the round counted as one that lost everything.
#[test]
fn a_lost_packet_that_was_alone_in_its_round_says_nothing() {
    #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
    let start = Instant::now();
    let mut known = Simulation::new(PLAIN, &[(0.0, Load::Endless)], 1, None);
    known.run_until(3.0);
    for mut control in [Congestion::new(start, MTU as u16, None), known.control(0).clone()] {
        let (before, mut number) = (control.rate(), 1_000_000);
        for round in 0..40 {
            // Two packets in a round; each second round the first of them is lost.
            let sent = start + Duration::from_secs(10) + Duration::from_millis(60) * round;
            let now = sent + Duration::from_millis(50);
            control.handle_sent(sent, MTU, number);
            control.handle_sent(sent, MTU, number + 1);
            control.handle_ack(now, sent, MTU);
            control.handle_acks_end(now, 0, true, number + 1);
            if round % 2 == 0 {
                control.handle_lost(sent, MTU, false);
            }
            number += 2;
        }
        assert!(control.rate() >= 0.99 * before, "{} of {before}", control.rate());
        assert!(before > 0.0 || control.phase == Phase::Startup, "{:?}", control.phase);
    }
}

/// A connection that is kept open sees the queues of others; it is not to begin with the window of a path that is full.
#[test]
fn a_path_that_is_kept_open_is_started_on_when_it_is_used() {
    #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
    let start = Instant::now();
    let mut control = Congestion::new(start, MTU as u16, None);
    let ack = |control: &mut Congestion, number: u32, rtt: Duration| {
        let sent = start + Duration::from_secs(3) * number;
        control.handle_sent(sent, MTU, number.into());
        control.handle_ack(sent + rtt, sent, MTU);
        control.handle_acks_end(sent + rtt, 0, true, number.into());
    };
    ack(&mut control, 0, Duration::from_millis(50));
    let window = control.window();
    assert!(window as f64 >= INITIAL_RATE * 0.05 * 0.99, "{window}");
    for number in 1..40 {
        ack(&mut control, number, Duration::from_millis(120));
    }
    assert!(control.phase == Phase::Startup && control.window() >= window, "{:?} {}", control.phase, control.window());
    assert_eq!(control.known(), None);
}

#[test]
fn a_path_that_is_gone_is_started_on_again() {
    let mut simulation = Simulation::new(PLAIN, &[(0.0, Load::Endless)], 1, None);
    simulation.run_until(3.0);
    let mut control = simulation.control(0).clone();
    assert!((control.rate() * 8.0 / 1e6 - 100.0).abs() < 20.0, "{}", control.rate());
    assert!(control.rtt().unwrap() >= Duration::from_millis(50) && control.loss().share < 0.01);
    #[allow(clippy::disallowed_methods, reason = "any instant will do")]
    let now = Instant::now();
    control.handle_lost(now, 10 * MTU, true);
    assert_eq!(control.window(), MIN_PACKETS * MTU);
    control.handle_marked(now, now);
    assert!(control.window() >= MIN_PACKETS * MTU);
}

/// A mark only ended the surplus: a CUBIC that heeds marks was left 3 of 100 Mbit/s, and 94 of 100 packets were marked.
#[test]
fn marks_are_heeded_as_a_rival_heeds_them() {
    for (rate, rtt_ms, marks_above) in [(100.0, 50.0, 0.1), (100.0, 50.0, 0.4), (20.0, 40.0, 0.3), (100.0, 5.0, 0.5)] {
        let link = Link { mbit: rate, rtt_ms, marks_above, ..PLAIN };
        let mut alone = Simulation::new(link, &[(0.0, Load::Endless)], 1, None);
        let filled = mbit(alone.run_until(30.0)[0], 30.0) / rate;
        assert!(filled > 0.85 && alone.marked() < 0.02, "{link:?} alone: {filled}, marked {}", alone.marked());
        for other in [Load::CubicRival, Load::Endless] {
            leaves_room(link, other, &[(0.0, 4.0), (4.0, 0.0), (0.0, 0.0)], |both| {
                assert!(both.marked() < 0.05, "{link:?}: marked {}", both.marked());
            });
        }
    }
}

/// One of ours and another share a link from 10 to 50 s, having begun at such times: each has 0.3 of it on average, and 0.2 at least.
fn leaves_room(link: Link, other: Load, starts: &[(f64, f64)], expect: impl Fn(&Simulation)) {
    let shares = (0..).zip(starts).map(|(seed, (ours, theirs))| {
        let mut both = Simulation::new(link, &[(*ours, Load::Endless), (*theirs, other)], seed, None);
        both.run_until(10.0);
        let shares = both.run_until(50.0);
        expect(&both);
        [0, 1].map(|flow| mbit(shares[flow], 40.0) / link.mbit)
    });
    let shares = shares.collect::<Vec<_>>();
    for flow in 0..2 {
        let mean = shares.iter().map(|shares| shares[flow]).sum::<f64>() / shares.len() as f64;
        let least = shares.iter().map(|shares| shares[flow]).fold(1.0, f64::min);
        assert!(mean > 0.3 && least > 0.2, "{link:?} beside {other:?}: {shares:.2?}");
    }
}

/// A CUBIC was left 10 to 16 % at 20 Mbit/s and 40 ms. A BBR left 19 % at 50 ms: what was given up to it, it took.
#[test]
fn rivals_and_this_one_leave_each_other_room() {
    for (rate, rtt_ms) in [(100.0, 50.0), (20.0, 40.0), (5.0, 30.0), (50.0, 100.0)] {
        let link = Link { mbit: rate, rtt_ms, ..PLAIN };
        for rival in [Load::CubicRival, Load::BbrRival] {
            leaves_room(link, rival, &[(0.0, 2.0), (2.0, 0.0), (0.0, 0.0), (5.0, 0.0)], |both| {
                assert!(both.mean_queue() < 1.5);
            });
        }
    }
}

#[test]
fn objects_one_after_another_learn_the_rate_and_the_loss() {
    for (loss, burst) in [(0.0, 1.0), (0.05, 1.0), (0.05, 8.0)] {
        let link = Link { loss, burst, ..PLAIN };
        let mut simulation = Simulation::new(link, &[(0.0, Load::Objects(218))], 3, None);
        simulation.run_until(20.0);
        let mut took = simulation.took(0).iter().copied().skip(20).collect::<Vec<_>>();
        took.sort_by(f64::total_cmp);
        let control = simulation.control(0);
        // 218 packets take 24 ms on the link, and 25 ms to the other side.
        assert!(took[took.len() / 2] < 0.056, "{took:?}");
        assert!((control.loss().share - loss).abs() < 0.025);
        assert!(loss > 0.0 || control.loss().share == 0.0);
    }
}
