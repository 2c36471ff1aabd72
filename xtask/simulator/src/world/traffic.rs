//! Who comes when, and for how long.

use std::f64::consts::TAU;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::geography::COUNTRIES;
use super::{Arrival, Client, World};
use crate::dice::{Dice, seconds};

/// How long the connections of an app last, in seconds.
#[derive(Debug, Clone, Copy)]
pub enum Lasts {
    Exponential { mean: f64 },
    LogNormal { median: f64, sigma: f64, longest: f64 },
    Pareto { alpha: f64, shortest: f64, longest: f64 },
}

impl Lasts {
    fn draw(self, dice: &mut Dice) -> Duration {
        seconds(match self {
            Self::Exponential { mean } => mean * dice.exponential(),
            Self::LogNormal { median, sigma, longest } => dice.log_normal(median, sigma).min(longest),
            Self::Pareto { alpha, shortest, longest } => dice.bounded_pareto(alpha, shortest, longest),
        })
    }
}

/// The connections of one app: a Poisson process whose rate follows the hours and bursts.
#[derive(Debug, Clone)]
pub struct Flow {
    pub app: usize,
    /// Connections per second of the whole world, on average.
    pub rate: f64,
    pub lasts: Lasts,
    /// Part by which the rate rises and falls with the time of day; the day is as long as the world lives.
    pub swing: f64,
    pub bursts: Vec<Burst>,
}

/// The clients of one country come more often for a while.
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    pub country: &'static str,
    pub from: f64,
    pub until: f64,
    pub times: f64,
}

impl Flow {
    /// Connections per second of one country's clients; its evening comes earlier in the East.
    fn rate_of(&self, country: usize, at: f64, day: f64) -> f64 {
        let Some(its) = COUNTRIES.get(country) else { return 0.0 };
        let all: f64 = COUNTRIES.iter().map(|country| country.clients).sum();
        let hour = at / day + its.position.1 / 360.0;
        let bursts = self.bursts.iter().filter(|burst| burst.country == its.code);
        let burst: f64 =
            bursts.filter(|burst| (burst.from..burst.until).contains(&at)).map(|burst| burst.times).product();
        self.rate * its.clients / all * (1.0 + self.swing * (TAU * hour).sin()) * burst
    }
}

/// So many clients, by country, of which the geo database doesn't know one in fifty.
pub fn clients(world: &World, count: usize, dice: &mut Dice) -> Vec<Client> {
    let weights: Vec<f64> = COUNTRIES.iter().map(|country| country.clients).collect();
    let client = |number: usize| {
        let country = &COUNTRIES[dice.weighted(&weights)];
        let known = !dice.chance(0.02);
        let address = Ipv4Addr::from_bits(0x0b00_0000 + u32::try_from(number).unwrap_or(u32::MAX));
        Client {
            address,
            position: country.position,
            country: known.then_some(country),
            region: known.then(|| world.region(country.region)),
        }
    };
    (0..count).map(client).collect()
}

/// All arrivals of these flows, by time. Clients come to the nearest POP; one in twenty is led astray.
pub fn arrivals(world: &World, flows: &[Flow], dice: &mut Dice) -> Vec<Arrival> {
    let homes: Vec<usize> = world.clients.iter().map(|client| nearest_pop(world, client)).collect();
    let crowds = crowds(world);
    let mut arrivals: Vec<Arrival> = Vec::new();
    for flow in flows {
        for (country, crowd) in crowds.iter().enumerate().filter(|(_, crowd)| !crowd.is_empty()) {
            for at in
                poisson(world.length.as_secs_f64(), |at| flow.rate_of(country, at, world.length.as_secs_f64()), dice)
            {
                let client = crowd[popular(crowd.len(), dice)];
                let astray = dice.chance(0.05);
                let pop = if astray { dice.below(world.pops.len()) } else { homes[client] };
                let (lasts, jitter) = (flow.lasts.draw(dice), dice.between(0.9, 1.4));
                arrivals.push(Arrival { at, client, app: flow.app, pop, lasts, jitter });
            }
        }
    }
    arrivals.sort_by_key(|arrival| (arrival.at, arrival.client));
    arrivals
}

/// The clients of each country, those included whose country nobody knows.
fn crowds(world: &World) -> Vec<Vec<usize>> {
    let mut crowds = vec![Vec::new(); COUNTRIES.len()];
    for (at, client) in world.clients.iter().enumerate() {
        if let Some(country) = COUNTRIES.iter().position(|country| country.position == client.position) {
            crowds[country].push(at);
        }
    }
    crowds
}

/// A few clients come often and most seldom: behind some addresses there are many people.
fn popular(count: usize, dice: &mut Dice) -> usize {
    let at = count as f64 * dice.unit().powi(3);
    (at as usize).min(count.saturating_sub(1))
}

fn nearest_pop(world: &World, client: &Client) -> usize {
    let far = |pop: usize| {
        let position = world.regions[world.pops[pop]].position;
        position.map_or(f64::INFINITY, |position| position.distance_km(client.position))
    };
    (0..world.pops.len()).min_by(|a, b| far(*a).total_cmp(&far(*b))).unwrap_or(0)
}

/// The times of a Poisson process whose rate changes: those of one at the highest rate, thinned out.
fn poisson(length: f64, rate: impl Fn(f64) -> f64, dice: &mut Dice) -> Vec<Duration> {
    let samples = 2000;
    let highest = (0..=samples).map(|at| rate(length * f64::from(at) / f64::from(samples))).fold(0.0, f64::max) * 1.02;
    let mut times = Vec::new();
    if highest <= 0.0 {
        return times;
    }
    let mut at = dice.exponential() / highest;
    while at < length {
        if dice.unit() * highest < rate(at) {
            times.push(seconds(at));
        }
        at += dice.exponential() / highest;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_and_hours_change_the_rate() {
        let burst = Burst { country: "DE", from: 100.0, until: 200.0, times: 5.0 };
        let lasts = Lasts::Exponential { mean: 1.0 };
        let flow = Flow { app: 0, rate: 100.0, lasts, swing: 0.5, bursts: vec![burst] };
        let germany = COUNTRIES.iter().position(|country| country.code == "DE").unwrap();
        let times = poisson(1000.0, |at| flow.rate_of(germany, at, 1000.0), &mut Dice::new(1, 1));
        let within =
            |from: u64, until: u64| times.iter().filter(|at| (from..until).contains(&at.as_secs())).count() as f64;
        // 70 of 1020 clients are German: 6.9 per second on average, half as many again in the evening.
        assert!((within(100, 200) / within(200, 300) - 5.0).abs() < 1.0);
        assert!(within(200, 300) > 2.0 * within(700, 800));
    }
}
