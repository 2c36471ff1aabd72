#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::domain::testing::{app_name, id, region, row};
use crate::domain::{AffinityPrefix, BackendLoad, ClientAddr, RawApp, RawBackend, RawRouting, Region, explain};

/// Long enough for anything that is to happen.
const SOON: Duration = Duration::from_secs(60);

/// A table of the app `web` with these backends, which may have `length` clients wait.
struct Shop {
    routing: RoutingTable,
    app: AppName,
    pop: Region,
}

impl Shop {
    fn new(backends: &[RawBackend], length: i64) -> Self {
        let shop = Self { routing: RoutingTable::new(), app: app_name("web"), pop: region("sa") };
        shop.load(backends, length);
        shop
    }

    fn load(&self, backends: &[RawBackend], length: i64) {
        let app = RawApp { queue_length: length.into(), ..RawApp::named("web") };
        let raw = RawRouting { backends: backends.to_vec(), apps: vec![app], ..RawRouting::default() };
        let report = self.routing.apply(&raw, true).unwrap();
        assert!(report.rejected.is_empty(), "{report:?}");
    }

    fn search<'a>(&'a self, client: u32, tried: &'a Tried) -> Search<'a, fastrand::Rng> {
        let client = ClientAddr::new(Ipv4Addr::from_bits(0x0a00_0000 + client).into());
        Search {
            routing: &self.routing,
            app: &self.app,
            request: Request {
                client_region: None,
                client_position: None,
                pop_region: &self.pop,
                client: None,
                bound: None,
            },
            tried,
            source: AffinityPrefix::default().prefix(client),
            random: fastrand::Rng::with_seed(client.ip().is_ipv4().into()),
        }
    }

    async fn place(&self, client: u32, limit: Duration) -> Result<Pick, NoPlace> {
        self.place_but(client, &[], limit).await
    }

    /// Likewise, for a client that has tried some.
    async fn place_but(&self, client: u32, tried: &[&str], limit: Duration) -> Result<Pick, NoPlace> {
        let mut already = Tried::new();
        tried.iter().for_each(|name| already.push(self.routing.load().backend(&id(name)).unwrap()));
        let mut search = self.search(client, &already);
        match search.now()? {
            Now::Place(pick) => Ok(pick),
            Now::Ticket(ticket, _) => search.wait(ticket, limit).await,
        }
    }

    fn load_of(&self, backend: &str) -> Arc<BackendLoad> {
        Arc::clone(&self.routing.load().backend(&id(backend)).unwrap().load)
    }

    fn waiting(&self) -> usize {
        self.routing.load().app(&self.app).unwrap().queue().len()
    }
}

fn backend(name: &str, hard: i64) -> RawBackend {
    RawBackend { soft_limit: 0.into(), hard_limit: hard.into(), ..row(name, "sa") }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

/// Runs `work` while `meanwhile` goes on; that begins when `waiting` wait.
async fn while_waiting<T>(shop: &Shop, waiting: usize, work: impl Future<Output = T>, meanwhile: impl FnOnce()) -> T {
    let meanwhile = async {
        while shop.waiting() < waiting {
            tokio::task::yield_now().await;
        }
        meanwhile();
    };
    tokio::join!(work, meanwhile).0
}

#[test]
fn a_place_that_becomes_free_goes_to_who_waits() {
    let shop = Shop::new(&[backend("b", 1)], 10);
    block_on(async {
        let held = shop.place(1, SOON).await.unwrap();
        let next = while_waiting(&shop, 1, shop.place(2, SOON), || drop(held)).await.unwrap();
        assert_eq!(next.backend.id, id("b"));
        assert_eq!((shop.waiting(), next.permit.load().active()), (0, 1));
    });
    assert_eq!(shop.load_of("b").active(), 0);
}

#[test]
fn who_comes_does_not_overtake_those_who_wait() {
    let shop = Shop::new(&[backend("b", 1)], 10);
    block_on(async {
        let held = shop.place(1, SOON).await.unwrap();
        let tried = Tried::new();
        let Ok(Now::Ticket(first, _)) = shop.search(2, &tried).now() else { panic!("it has to wait") };
        drop(held);
        let Ok(Now::Ticket(second, _)) = shop.search(3, &tried).now() else { panic!("the place is the first one's") };
        let pick = shop.search(2, &tried).wait(first, SOON).await.unwrap();
        assert_eq!(
            shop.search(3, &tried).wait(second, Duration::from_millis(20)).await.unwrap_err(),
            NoPlace::TimedOut
        );
        drop(pick);
        assert!(matches!(shop.search(4, &tried).now(), Ok(Now::Place(_))));
    });
}

#[test]
fn waiting_ends_by_time_and_by_going_away_and_leaves_nothing() {
    let shop = Shop::new(&[backend("b", 1)], 2);
    block_on(async {
        let _held = shop.place(1, SOON).await.unwrap();
        assert_eq!(shop.place(2, Duration::from_millis(10)).await.unwrap_err(), NoPlace::TimedOut);
        assert_eq!(shop.place(2, Duration::ZERO).await.unwrap_err(), NoPlace::TimedOut);
        let cancelled = tokio::time::timeout(Duration::from_millis(10), shop.place(2, SOON)).await;
        assert!(cancelled.is_err());
        assert_eq!(shop.waiting(), 0);
        let tried = Tried::new();
        let _line = [2, 3].map(|n| shop.search(n, &tried).now().unwrap());
        assert_eq!(shop.search(4, &tried).now().unwrap_err(), NoPlace::QueueFull);
    });
}

#[test]
fn without_a_queue_a_full_app_refuses() {
    let shop = Shop::new(&[backend("b", 1)], 0);
    let _held = block_on(shop.place(1, SOON)).unwrap();
    assert_eq!(block_on(shop.place(2, SOON)).unwrap_err(), NoPlace::NoBackend(NoBackend::AllFull));
}

#[test]
fn a_reload_that_makes_room_serves_as_many_as_it_makes_room_for() {
    let shop = Shop::new(&[backend("b", 1)], 10);
    block_on(async {
        let _held = shop.place(1, SOON).await.unwrap();
        let three = async { tokio::join!(shop.place(2, SOON), shop.place(3, SOON), shop.place(4, SOON)) };
        let (a, b, c) = while_waiting(&shop, 3, three, || shop.load(&[backend("b", 3), backend("c", 1)], 10)).await;
        let mut names = [a, b, c].map(|pick| pick.unwrap().backend.id.to_string());
        names.sort();
        assert_eq!(names, ["b", "b", "c"]);
    });
}

#[test]
fn a_reload_that_takes_everything_away_says_so() {
    let shop = Shop::new(&[backend("b", 1)], 10);
    block_on(async {
        let _held = shop.place(1, SOON).await.unwrap();
        let two = async { tokio::join!(shop.place(2, SOON), shop.place(3, SOON)) };
        let drained = RawBackend { state: "drain".into(), ..backend("b", 1) };
        let (a, b) = while_waiting(&shop, 2, two, || shop.load(&[drained], 10)).await;
        let none = NoPlace::NoBackend(NoBackend::NoneEligible);
        assert_eq!([a.unwrap_err(), b.unwrap_err()], [none, none]);
    });
}

#[test]
fn a_daemon_that_ends_sends_those_who_wait_away() {
    let shop = Shop::new(&[backend("b", 1)], 10);
    block_on(async {
        let _held = shop.place(1, SOON).await.unwrap();
        let end = while_waiting(&shop, 1, shop.place(2, SOON), || shop.routing.lobby().close()).await;
        assert_eq!(end.unwrap_err(), NoPlace::Ending);
    });
}

/// A place on a backend that the first has tried goes to the second.
#[test]
fn a_place_that_the_first_can_not_use_goes_to_the_next() {
    let shop = Shop::new(&[backend("a", 1), backend("b", 1)], 10);
    block_on(async {
        let held = [shop.place(1, SOON).await.unwrap(), shop.place(2, SOON).await.unwrap()];
        let mut tried = Tried::new();
        tried.push(&held[0].backend);
        let mut picky = shop.search(3, &tried);
        let Ok(Now::Ticket(ticket, _)) = picky.now() else { panic!("it has to wait") };
        let [first, _second] = held;
        let both = async { tokio::join!(picky.wait(ticket, Duration::from_millis(200)), shop.place(4, SOON)) };
        let (picky, other) = while_waiting(&shop, 2, both, || drop(first)).await;
        assert_eq!(picky.unwrap_err(), NoPlace::TimedOut);
        assert!(other.is_ok());
    });
}

#[test]
fn who_comes_has_a_place_at_once_that_those_before_can_not_use() {
    let shop = Shop::new(&[backend("a", 1), backend("b", 2)], 10);
    block_on(async {
        let (a, b) = (shop.load_of("a"), shop.load_of("b"));
        let held = a.try_reserve(shop.routing.load().backend(&id("a")).unwrap().limits).unwrap();
        let others = async {
            // Nobody announces anything.
            let one = shop.place(4, Duration::from_secs(1)).await.expect("a place on b");
            let two = shop.place(5, Duration::from_secs(1)).await.expect("the other one");
            assert_eq!((shop.waiting(), b.active()), (1, 2));
            assert_eq!(shop.place(6, Duration::from_millis(10)).await.unwrap_err(), NoPlace::TimedOut);
            // Who waits for it gets it, and not who comes.
            drop(held);
            let comes = shop.place(7, Duration::from_millis(50)).await;
            assert_eq!(comes.unwrap_err(), NoPlace::TimedOut);
            drop((one, two));
        };
        let (picky, ()) = tokio::join!(shop.place_but(3, &["b"], SOON), others);
        assert_eq!(picky.unwrap().backend.id, id("a"));
    });
}

#[test]
fn a_full_queue_refuses_nobody_a_place_that_those_in_it_can_not_use() {
    let shop = Shop::new(&[backend("a", 1), backend("b", 2)], 2);
    block_on(async {
        let held = shop.load_of("a").try_reserve(shop.routing.load().backend(&id("a")).unwrap().limits).unwrap();
        let others = async {
            while shop.waiting() < 2 {
                tokio::task::yield_now().await;
            }
            let two = [5, 6].map(|n| shop.search(n, &Tried::new()).now());
            assert!(two.iter().all(|now| matches!(now, Ok(Now::Place(pick)) if pick.backend.id == id("b"))), "{two:?}");
            assert_eq!(shop.search(7, &Tried::new()).now().unwrap_err(), NoPlace::QueueFull);
            // Who waits for it gets it, and not who comes.
            drop(held);
            assert_eq!(shop.search(8, &Tried::new()).now().unwrap_err(), NoPlace::QueueFull);
        };
        let (first, second) = (shop.place_but(3, &["b"], SOON), shop.place_but(4, &["b"], SOON));
        let second = async { drop(second.await.unwrap()) };
        let first = async { drop(first.await.unwrap()) };
        tokio::join!(first, second, others);
    });
    assert_eq!((shop.load_of("a").active(), shop.load_of("b").active(), shop.waiting()), (0, 0, 0));
}

#[test]
fn nobody_waits_whose_last_backend_is_drained_and_others_do() {
    let shop = Shop::new(&[backend("a", 1), backend("b", 1)], 10);
    block_on(async {
        let held = [shop.place(1, SOON).await.unwrap(), shop.place(2, SOON).await.unwrap()];
        let two = async { tokio::join!(shop.place(3, SOON), shop.place_but(4, &["b"], SOON)) };
        let drain = || {
            shop.load_of("a").set_draining(true);
            shop.routing.lobby().reconsider();
        };
        let meanwhile = async {
            let vain = while_waiting(&shop, 2, std::future::ready(()), drain);
            vain.await;
            while shop.waiting() > 1 {
                tokio::task::yield_now().await;
            }
            assert_eq!(
                shop.place_but(5, &["b"], SOON).await.unwrap_err(),
                NoPlace::NoBackend(NoBackend::AllTried),
                "not behind others either"
            );
            drop(held);
        };
        let ((waits, vain), ()) = tokio::join!(two, meanwhile);
        assert_eq!(waits.unwrap().backend.id, id("b"));
        assert_eq!(vain.unwrap_err(), NoPlace::NoBackend(NoBackend::AllTried));
    });
}

/// Threads that come, wait, hold a place for a moment and go, some of them too early: the limits hold, and everybody who
/// waits long enough is served, because nobody looks now and then here: each place has to be announced.
#[test]
fn no_place_is_lost_and_no_limit_exceeded_by_threads() {
    let shop = Shop::new(&[backend("a", 2), backend("b", 3)], 1000);
    let (a, b) = (shop.load_of("a"), shop.load_of("b"));
    let served = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            let (shop, served, a, b) = (&shop, &served, &a, &b);
            scope.spawn(move || {
                block_on(async {
                    let client = |lane: u32| async move {
                        for turn in 0..150 {
                            if turn % 10 == 9 {
                                let _ = shop.place(thread, Duration::from_micros(50)).await;
                                continue;
                            }
                            // Some have tried a backend, and can't use a place that others can.
                            let tried: &[&str] = if turn % 3 == 0 { &["a"] } else { &[] };
                            let pick = shop.place_but(thread * 8 + lane, tried, SOON).await;
                            let pick = pick.expect("a place before long");
                            assert!(tried.is_empty() || pick.backend.id == id("b"));
                            assert!(a.active() <= 2 && b.active() <= 3);
                            tokio::task::yield_now().await;
                            drop(pick);
                            served.fetch_add(1, Ordering::SeqCst);
                        }
                    };
                    tokio::join!(client(0), client(1), client(2), client(3), client(4), client(5));
                });
            });
        }
        scope.spawn(|| {
            for _ in 0..50 {
                shop.load(&[backend("a", 2), backend("b", 3)], 1000);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    });
    assert_eq!(served.into_inner(), 8 * 6 * 135);
    assert_eq!((a.active(), b.active(), shop.waiting()), (0, 0, 0));
}

/// What one that came now would meet: see [`waits_behind`].
fn foreseen(shop: &Shop, client: u32) -> Result<Option<usize>, NoPlace> {
    let (tried, snapshot) = (Tried::new(), shop.routing.load());
    let search = shop.search(client, &tried);
    let index = snapshot.app(&shop.app).unwrap();
    // Without a reservation: to give it back would call those who wait.
    let plan = explain(index, snapshot.regions(), &search.request, &tried, 1, &mut fastrand::Rng::with_seed(1));
    waits_behind(index, &search.source, &search.request, plan.refused.map_or(Ok(()), Err))
}

#[test]
fn what_is_foreseen_is_what_who_comes_meets() {
    let shop = Shop::new(&[backend("a", 1), backend("b", 1)], 3);
    let tried = Tried::new();
    let waits = |client: u32| match shop.search(client, &tried).now() {
        Ok(Now::Ticket(ticket, _)) => ticket,
        other => panic!("it has to wait: {other:?}"),
    };
    block_on(async {
        assert_eq!(foreseen(&shop, 1), Ok(None));
        let held = [shop.place(1, SOON).await.unwrap(), shop.place(2, SOON).await.unwrap()];
        assert_eq!(foreseen(&shop, 3), Ok(Some(0)));
        let first = waits(3);
        assert_eq!((foreseen(&shop, 3), foreseen(&shop, 4)), (Ok(Some(1)), Ok(Some(1))));
        let line = [waits(3), waits(4)];
        assert_eq!(foreseen(&shop, 4), Err(NoPlace::QueueFull));
        assert_eq!(shop.search(4, &tried).now().unwrap_err(), NoPlace::QueueFull);
        assert_eq!((foreseen(&shop, 5), shop.waiting()), (Ok(Some(2)), 3), "before the second of client 3");
        // A place is free, and not for who comes.
        drop(held);
        assert_eq!(foreseen(&shop, 5), Ok(Some(2)));
        drop((first, line));
        assert_eq!(foreseen(&shop, 5), Ok(None));
    });
    // Without a queue, and without anything to wait for.
    shop.load(&[backend("a", 1)], 0);
    let held = block_on(shop.place(1, SOON)).unwrap();
    assert_eq!(foreseen(&shop, 2), Err(NoPlace::NoBackend(NoBackend::AllFull)));
    shop.load(&[backend("a", 1)], 3);
    let waits = waits(2);
    shop.load(&[RawBackend { state: "drain".into(), ..backend("a", 1) }], 3);
    assert_eq!(foreseen(&shop, 3), Err(NoPlace::NoBackend(NoBackend::NoneEligible)));
    drop((held, waits));
}

/// Those in the queue have left it to others.
#[test]
fn a_place_that_those_in_the_queue_can_not_use_is_foreseen_for_who_comes() {
    let shop = Shop::new(&[backend("a", 1), backend("b", 1)], 3);
    block_on(async {
        let held = [shop.place(1, SOON).await.unwrap(), shop.place(2, SOON).await.unwrap()];
        let (a, b): (Vec<_>, Vec<_>) = held.into_iter().partition(|pick| pick.backend.id == id("a"));
        let waits = shop.place_but(3, &["a"], SOON);
        let look = async {
            while shop.waiting() < 1 {
                tokio::task::yield_now().await;
            }
            assert_eq!(foreseen(&shop, 4), Ok(Some(1)));
            drop(a);
            // Until the one that waits has looked.
            while foreseen(&shop, 4) != Ok(None) {
                tokio::task::yield_now().await;
            }
            drop(b);
        };
        let (served, ()) = tokio::join!(waits, look);
        assert_eq!(served.unwrap().backend.id, id("b"));
    });
}
