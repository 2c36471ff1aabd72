#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use proptest::prelude::*;

use super::line::ASK_AGAIN;
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

/// It looked in vain, though there was a place.
fn leave_it(ticket: &Ticket) {
    let Poll::Ready(Called::Look(calls)) = poll(ticket) else { panic!("{:?}", poll(ticket)) };
    ticket.declined(calls, true);
}

#[test]
fn who_comes_behind_those_who_left_a_place_looks_at_once_and_they_are_let_sleep() {
    let queue = queue();
    let picky: Vec<Ticket> = (0..50).map(|n| join(&queue, n)).collect();
    picky.iter().for_each(leave_it);
    let bells: Vec<Arc<Bell>> = (0..50).map(|_| Arc::default()).collect();
    for (ticket, bell) in picky.iter().zip(&bells) {
        assert!(ticket.poll_called(&mut Context::from_waker(&Waker::from(Arc::clone(bell)))).is_pending());
    }
    for n in 100..200 {
        let comes = join(&queue, n);
        assert!(is_called(&comes));
        // Who comes while that one looks has to see what it leaves.
        let next = join(&queue, 200);
        assert!(!is_called(&next));
        comes.served(true);
        assert!(is_called(&next));
        next.served(true);
    }
    assert!(bells.iter().all(|bell| bell.0.load(Ordering::SeqCst) == 0), "they were woken for what they had left");
    // A place that is new may be one for them, and they go first.
    queue.freed();
    let comes = join(&queue, 100);
    assert!(is_called(&picky[0]) && !is_called(&comes));
    picky.iter().for_each(leave_it);
    assert!(is_called(&comes));
}

#[test]
fn what_one_leaves_is_also_for_who_came_before_it_meanwhile() {
    let queue = queue();
    let [first, second] = [1, 1].map(|n| join(&queue, n));
    drop(first);
    assert!(is_called(&second));
    let before = join(&queue, 2);
    assert!(before.turn < second.turn && !is_called(&before));
    leave_it(&second);
    assert!(is_called(&before));
}

#[test]
fn who_comes_behind_one_that_found_nothing_waits() {
    let queue = queue();
    let [picky, plain] = [1, 2].map(|n| join(&queue, n));
    leave_it(&picky);
    decline(&plain);
    let comes = join(&queue, 3);
    assert!(!is_called(&comes), "the place is gone, or the one before would have it");
    drop((comes, plain));
    decline(&join(&queue, 3));
    assert!(!is_called(&picky));
}

#[test]
fn after_a_change_everybody_looks_once_one_after_the_other() {
    let lobby = Lobby::default();
    let queue = lobby.queue(&app_name("web"));
    let line: Vec<Ticket> = (0..5).map(|n| join(&queue, n)).collect();
    decline(&line[0]);
    queue.changed();
    queue.changed();
    assert_eq!(line.iter().filter(|ticket| is_called(ticket)).count(), 2, "each may have made room");
    [0, 1].into_iter().for_each(|at| decline(&line[at]));
    lobby.reconsider();
    for ticket in &line {
        assert_eq!(line.iter().filter(|ticket| is_called(ticket)).count(), 1);
        decline(ticket);
    }
    assert!(!line.iter().any(is_called));
    lobby.reconsider();
    decline(&line[0]);
    assert!(!line.iter().any(is_called), "nothing has changed since");
}

#[test]
fn everybody_looks_after_a_change_also_where_some_are_served_or_go() {
    let lobby = Lobby::default();
    let queue = lobby.queue(&app_name("web"));
    let [served, goes, last] = [1, 2, 3].map(|n| join(&queue, n));
    decline(&served);
    queue.changed();
    lobby.reconsider();
    served.served(false);
    assert!(is_called(&goes));
    drop(goes);
    assert!(is_called(&last));
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

#[test]
fn what_those_in_a_full_line_left_is_for_who_comes() {
    let queue = queue();
    let picky = [1, 2].map(|n| queue.join(source(n), 2).unwrap());
    assert!(!queue.is_left_to(&source(3)), "they have not looked yet");
    picky.iter().for_each(leave_it);
    for n in 3..20 {
        assert!(queue.is_left_to(&source(n)));
    }
    assert_eq!(queue.join(source(3), 2).unwrap_err(), NoTurn::Full, "where it was gone after all");
    queue.freed();
    assert!(!queue.is_left_to(&source(3)), "this one may be for those who wait");
    picky.iter().for_each(leave_it);
    assert!(queue.is_left_to(&source(3)));
    queue.close();
    assert!(!queue.is_left_to(&source(3)));
}

/// All have left what is free.
fn a_long_line(queue: &Arc<AppQueue>, length: usize) -> Vec<Ticket> {
    let line: Vec<Ticket> = (0..length).map(|_| queue.join(source(1), u32::MAX).unwrap()).collect();
    line.iter().for_each(leave_it);
    line
}

/// Has all look who are called, who leave it to others again. How often each did.
fn all_leave_it(line: &[Ticket]) -> Vec<usize> {
    let mut looked = vec![0; line.len()];
    while let Some(at) = line.iter().position(is_called) {
        leave_it(&line[at]);
        looked[at] += 1;
    }
    looked
}

#[test]
fn of_those_who_left_a_place_a_few_look_where_nothing_was_announced_and_all_where_something_was() {
    let queue = queue();
    let line = a_long_line(&queue, 5 * ASK_AGAIN);
    let mut sum = vec![0; line.len()];
    for _ in 0..10 {
        queue.announce(Line::reconsider);
        let looked = all_leave_it(&line);
        assert_eq!(looked.iter().sum::<usize>(), ASK_AGAIN);
        sum.iter_mut().zip(looked).for_each(|(sum, times)| *sum += times);
    }
    assert!(sum.iter().all(|times| *times == 2), "each has its turn: {sum:?}");
    queue.freed();
    assert!(all_leave_it(&line).iter().all(|times| *times == 1));
    queue.changed();
    let _ = all_leave_it(&line);
    queue.announce(Line::reconsider);
    assert!(all_leave_it(&line).iter().all(|times| *times == 1));
    // In a short line each time all of them.
    drop(line);
    let line = a_long_line(&queue, ASK_AGAIN);
    for _ in 0..3 {
        queue.announce(Line::reconsider);
        assert!(all_leave_it(&line).iter().all(|times| *times == 1));
    }
}

/// A walk of the line would take two hundred times as long in the long one.
#[test]
fn who_comes_and_is_served_does_not_pay_for_the_length_of_the_line() {
    let took = |length: usize| {
        let queue = queue();
        let line = a_long_line(&queue, length);
        // Who comes is behind all of them.
        lock(&queue.line).round = 1_000_000;
        let come = || {
            let start = std::time::Instant::now();
            for _ in 0..100 {
                assert!(queue.is_left_to(&source(2)));
                let comes = queue.join(source(2), u32::MAX).unwrap();
                assert!(is_called(&comes));
                comes.served(true);
            }
            start.elapsed()
        };
        let best = (0..10).map(|_| come()).min().unwrap();
        assert_eq!(queue.len(), line.len());
        best
    };
    let (short, long) = (took(100), took(20_000));
    assert!(long < short * 20, "{short:?} behind 100 and {long:?} behind 20000");
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
    assert_nothing_left(queue);
    order
}

fn assert_nothing_left(queue: &AppQueue) {
    let line = lock(&queue.line);
    assert!(queue.is_empty() && line.shares.is_empty() && line.stands.is_empty(), "{line:?}");
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
fn to_ask_how_many_are_before_enters_no_line() {
    let queue = queue();
    assert_eq!(queue.before(&source(1), 3), Ok(0));
    assert_eq!(queue.before(&source(1), 0), Err(NoTurn::Full), "the app has no queue");
    let line = [1, 1, 2].map(|n| queue.join(source(n), 3).unwrap());
    assert_eq!([1, 2].map(|n| queue.before(&source(n), 3)), [Err(NoTurn::Full); 2]);
    assert_eq!(queue.before(&source(3), 3), Ok(2), "the second of the first source would make room");
    assert_eq!(queue.len(), 3);
    drop(line);
    assert_nothing_left(&queue);
}

proptest! {
    /// Whoever waits, some of whom were served or have gone.
    #[test]
    fn as_many_are_served_before_as_were_said(
        came in proptest::collection::vec((0_u8..4, any::<bool>()), 0..24),
        last in 0_u8..4,
    ) {
        let queue = queue();
        let mut line = Vec::new();
        for (n, goes) in came {
            line.push((n, join(&queue, n)));
            if goes {
                drop(line.remove(line.len() / 2));
            }
        }
        let before = queue.before(&source(last), 100).unwrap();
        // Not a source, but a name for the one.
        let own = (99, join(&queue, last));
        line.push(own);
        prop_assert_eq!(served(&queue, line).iter().position(|n| *n == 99), Some(before));
    }
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
    /// A connection of this source comes; whether it has tried the second backend.
    Come(u8, bool),
    /// One that has a place on this backend ends.
    End(usize),
    /// One that was called looks for a place.
    Look(usize),
    /// One gives up.
    Leave(usize),
    /// A tenth of a second has passed; whether something has changed.
    Reconsider(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0u8..4, prop::bool::ANY).prop_map(|(n, picky)| Event::Come(n, picky)),
        (0usize..2).prop_map(Event::End),
        (0usize..16).prop_map(Event::Look),
        (0usize..16).prop_map(Event::Leave),
        prop::bool::ANY.prop_map(Event::Reconsider),
    ]
}

/// Two backends with so many places, and how many are taken.
#[derive(Debug)]
struct Backends {
    places: [usize; 2],
    busy: [usize; 2],
}

impl Backends {
    fn has_room(&self, at: usize) -> bool {
        self.busy[at] < self.places[at]
    }

    fn can_serve(&self, picky: bool) -> bool {
        self.has_room(0) || (!picky && self.has_room(1))
    }

    fn take(&mut self, picky: bool) {
        let at = usize::from(!picky && self.has_room(1));
        self.busy[at] += 1;
    }

    /// One that was called looks.
    fn look(&mut self, line: &mut Vec<(Ticket, bool)>, at: usize) {
        let (ticket, picky) = &line[at];
        let picky = *picky;
        match poll(ticket) {
            Poll::Pending => {}
            Poll::Ready(Called::Go(_)) => drop(line.remove(at)),
            Poll::Ready(Called::Look(_)) if self.can_serve(picky) => {
                self.take(picky);
                line.remove(at).0.served(self.can_serve(false));
            }
            Poll::Ready(Called::Look(calls)) => ticket.declined(calls, self.can_serve(false)),
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: once all who were called have looked, nobody waits beside a free place that
    /// it can use, nor is refused beside one, and nothing is left when all are gone.
    #[test]
    fn nobody_waits_beside_a_free_place(
        places in prop::array::uniform2(1usize..4),
        length in 1u32..8,
        events in prop::collection::vec(event(), 0..200),
    ) {
        let queue = queue();
        let (mut backends, mut line) = (Backends { places, busy: [0, 0] }, Vec::new());
        for event in events {
            match event {
                Event::Come(n, picky)
                    if (queue.is_empty() || queue.is_left_to(&source(n))) && backends.can_serve(picky) =>
                {
                    backends.take(picky);
                }
                Event::Come(n, picky) => match queue.join(source(n), length) {
                    Ok(ticket) => line.push((ticket, picky)),
                    Err(_) => prop_assert!(!backends.can_serve(picky) || line.iter().any(|(ticket, _)| is_called(ticket))),
                },
                Event::End(at) if backends.busy[at] > 0 => {
                    let was_full = !backends.has_room(at);
                    backends.busy[at] -= 1;
                    // As backends do it: only one that was full calls.
                    if was_full {
                        queue.freed();
                    }
                }
                Event::Look(at) if !line.is_empty() => {
                    let at = at % line.len();
                    backends.look(&mut line, at);
                }
                Event::Leave(at) if !line.is_empty() => drop(line.remove(at % line.len())),
                Event::Reconsider(changed) => {
                    if changed {
                        queue.changed();
                    }
                    queue.announce(Line::reconsider);
                }
                _ => {}
            }
            prop_assert!(queue.len() <= length as usize);
        }
        while let Some(at) = line.iter().position(|(ticket, _)| poll(ticket).is_ready()) {
            backends.look(&mut line, at);
        }
        prop_assert!(!line.iter().any(|(_, picky)| backends.can_serve(*picky)), "{line:?} wait beside {backends:?}");
        drop(line);
        assert_nothing_left(&queue);
    }
}
