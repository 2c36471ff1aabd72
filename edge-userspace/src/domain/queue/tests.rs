#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use proptest::prelude::*;

use super::*;
use crate::domain::testing::app_name;
use crate::domain::{AffinityPrefix, ClientAddr};

fn source(n: u8) -> ClientPrefix {
    AffinityPrefix::default().prefix(ClientAddr::new(Ipv4Addr::new(192, 0, 2, n).into()))
}

fn queue() -> Arc<AppQueue> {
    Arc::default()
}

fn join(queue: &Arc<AppQueue>, n: u8) -> Ticket {
    queue.join(source(n), 100).unwrap()
}

fn poll(ticket: &Ticket) -> Poll<Called> {
    ticket.poll_called(&mut Context::from_waker(Waker::noop()))
}

fn is_called(ticket: &Ticket) -> bool {
    matches!(poll(ticket), Poll::Ready(Called::Look(_)))
}

/// It looked in vain.
fn decline(ticket: &Ticket) {
    let Poll::Ready(Called::Look(calls)) = poll(ticket) else { panic!("{:?}", poll(ticket)) };
    ticket.declined(calls, false);
}

#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn who_is_alone_looks_and_those_behind_are_called_one_for_each_place() {
    let queue = queue();
    let line = [1, 2, 3].map(|n| join(&queue, n));
    assert_eq!(line.each_ref().map(is_called), [true, false, false]);
    decline(&line[0]);
    assert_eq!(line.each_ref().map(is_called), [false, false, false]);
    queue.freed();
    queue.freed();
    assert_eq!(line.each_ref().map(is_called), [true, true, false]);
    let [first, second, third] = line;
    first.served(false);
    assert!(!is_called(&third), "the second place is the second one's");
    second.served(false);
    assert_eq!(queue.len(), 1);
}

#[test]
fn a_place_wakes_one() {
    let queue = queue();
    let bells: Vec<Arc<Bell>> = (0..50).map(|_| Arc::default()).collect();
    let line: Vec<Ticket> = (0..50).map(|n| join(&queue, n)).collect();
    decline(&line[0]);
    for (ticket, bell) in line.iter().zip(&bells) {
        assert!(ticket.poll_called(&mut Context::from_waker(&Waker::from(Arc::clone(bell)))).is_pending());
    }
    queue.freed();
    let woken = || bells.iter().map(|bell| bell.0.load(Ordering::SeqCst)).sum::<usize>();
    assert_eq!((woken(), bells[0].0.load(Ordering::SeqCst)), (1, 1));
    queue.freed();
    assert_eq!((woken(), bells[1].0.load(Ordering::SeqCst)), (2, 1));
}

#[test]
fn more_room_calls_the_next_and_a_place_that_only_another_can_take_does_too() {
    let queue = queue();
    let [first, second, third] = [1, 2, 3].map(|n| join(&queue, n));
    first.served(true);
    assert!(is_called(&second) && !is_called(&third));
    let Poll::Ready(Called::Look(calls)) = poll(&second) else { panic!() };
    second.declined(calls, true);
    assert!(!is_called(&second) && is_called(&third));
}

#[test]
fn a_place_that_was_announced_while_one_looked_is_looked_for_again() {
    let queue = queue();
    let only = join(&queue, 1);
    let Poll::Ready(Called::Look(calls)) = poll(&only) else { panic!() };
    queue.freed();
    only.declined(calls, false);
    assert!(is_called(&only));
    decline(&only);
    assert!(!is_called(&only));
}

#[test]
fn who_leaves_hands_the_call_on() {
    let queue = queue();
    let [first, second] = [1, 2].map(|n| join(&queue, n));
    drop(first);
    assert!(is_called(&second));
    assert_eq!(queue.len(), 1);
    drop(second);
    assert!(queue.is_empty());
}

#[test]
fn a_full_line_takes_nobody() {
    let queue = queue();
    let _line = [1, 2].map(|n| queue.join(source(n), 2).unwrap());
    assert_eq!(queue.join(source(3), 2).unwrap_err(), NoTurn::Full);
    assert_eq!(self::queue().join(source(1), 0).unwrap_err(), NoTurn::Full);
    assert_eq!(queue.len(), 2);
}

/// The sources of those who are served, in turn.
fn served(queue: &Arc<AppQueue>, mut line: Vec<(u8, Ticket)>) -> Vec<u8> {
    let mut order = Vec::new();
    while !line.is_empty() {
        let at = line.iter().position(|(_, ticket)| is_called(ticket)).expect("one is called");
        let (source, ticket) = line.remove(at);
        ticket.served(true);
        order.push(source);
    }
    assert!(queue.is_empty());
    assert!(lock(&queue.line).shares.is_empty());
    order
}

#[test]
fn each_source_has_its_turn() {
    let queue = queue();
    let line = [1, 1, 1, 1, 2, 2, 3].map(|n| (n, join(&queue, n)));
    assert_eq!(served(&queue, line.into()), [1, 2, 3, 1, 2, 1, 1]);
    let line = [4, 5, 6].map(|n| (n, join(&queue, n)));
    assert_eq!(served(&queue, line.into()), [4, 5, 6], "first come, first served");
}

#[test]
fn a_late_source_need_not_wait_for_rounds_that_others_had() {
    let queue = queue();
    let mut line: Vec<_> = [1, 1, 1, 1].map(|n| (n, join(&queue, n))).into();
    line.remove(0).1.served(true);
    line.remove(0).1.served(true);
    line.push((2, join(&queue, 2)));
    line.push((2, join(&queue, 2)));
    // One of the first source was called already; then the new one is not behind.
    assert_eq!(served(&queue, line), [1, 2, 2, 1]);
}

#[test]
fn a_source_that_fills_the_line_makes_room_for_others() {
    let queue = queue();
    let crowd: Vec<_> = (0..10).map(|_| queue.join(source(1), 10).unwrap()).collect();
    assert_eq!(queue.join(source(1), 10).unwrap_err(), NoTurn::Full);
    let other = queue.join(source(2), 10).unwrap();
    assert_eq!(queue.len(), 10);
    assert_eq!(poll(&crowd[9]), Poll::Ready(Called::Go(NoTurn::Full)), "the last of the crowd had to go");
    drop(crowd);
    assert!(is_called(&other));
}

#[test]
fn one_who_is_pushed_out_hands_its_call_on() {
    let queue = queue();
    let [first, second] = [1, 1].map(|n| queue.join(source(n), 2).unwrap());
    decline(&first);
    queue.freed();
    queue.freed();
    assert!(is_called(&second));
    let other = queue.join(source(2), 2).unwrap();
    assert!(is_called(&other));
}

#[test]
fn a_closed_lobby_sends_all_home() {
    let lobby = Lobby::default();
    let (web, mail) = (lobby.queue(&app_name("web")), lobby.queue(&app_name("mail")));
    let line = [join(&web, 1), join(&mail, 1)];
    lobby.close();
    assert!(line.iter().all(|ticket| poll(ticket) == Poll::Ready(Called::Go(NoTurn::Closed))));
    assert_eq!(web.join(source(2), 10).unwrap_err(), NoTurn::Closed);
    assert_eq!(lobby.queue(&app_name("late")).join(source(2), 10).unwrap_err(), NoTurn::Closed);
}

#[test]
fn lines_outlive_snapshots_and_not_their_apps() {
    let lobby = Lobby::default();
    let web = lobby.queue(&app_name("web"));
    lobby.tidy();
    assert!(Arc::ptr_eq(&web, &lobby.queue(&app_name("web"))));
    drop(web);
    lobby.tidy();
    assert!(lobby.all().is_empty());
}

#[derive(Debug, Clone)]
enum Event {
    /// A connection of this source comes.
    Come(u8),
    /// One that has a place ends.
    End,
    /// One that was called looks for a place.
    Look(usize),
    /// One gives up.
    Leave(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0u8..4).prop_map(Event::Come),
        Just(Event::End),
        (0usize..16).prop_map(Event::Look),
        (0usize..16).prop_map(Event::Leave),
    ]
}

proptest! {
    /// Whatever happens in whatever order: once all who were called have looked, nobody waits beside a free place, and
    /// nothing is left when all are gone.
    #[test]
    fn nobody_waits_beside_a_free_place(places in 1usize..4, events in prop::collection::vec(event(), 0..200)) {
        let queue = queue();
        let (mut busy, mut line): (usize, Vec<Ticket>) = (0, Vec::new());
        let look = |line: &mut Vec<Ticket>, busy: &mut usize, at: usize| {
            let Poll::Ready(called) = poll(&line[at]) else { return };
            match called {
                Called::Look(_) if *busy < places => {
                    *busy += 1;
                    line.remove(at).served(*busy < places);
                }
                Called::Look(calls) => line[at].declined(calls, false),
                Called::Go(_) => drop(line.remove(at)),
            }
        };
        for event in events {
            match event {
                Event::Come(_) if queue.is_empty() && busy < places => busy += 1,
                Event::Come(n) => line.extend(queue.join(source(n), 8)),
                Event::End if busy > 0 => {
                    busy -= 1;
                    // As backends do it: only one that was full calls.
                    if busy + 1 == places {
                        queue.freed();
                    }
                }
                Event::Look(at) if !line.is_empty() => { let at = at % line.len(); look(&mut line, &mut busy, at) }
                Event::Leave(at) if !line.is_empty() => drop(line.remove(at % line.len())),
                _ => {}
            }
            prop_assert!(queue.len() <= 8);
        }
        while let Some(at) = line.iter().position(|ticket| poll(ticket).is_ready()) {
            look(&mut line, &mut busy, at);
        }
        prop_assert!(line.is_empty() || busy == places, "{} wait and {busy} of {places} places are taken", line.len());
        drop(line);
        prop_assert!(queue.is_empty());
        prop_assert!(lock(&queue.line).shares.is_empty());
    }
}
