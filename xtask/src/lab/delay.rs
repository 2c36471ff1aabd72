//! A backend that is far away: what the POP sends to it goes through two TUN devices and waits in between, since not
//! every kernel has netem.
// System calls without a safe wrapper.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Namespace, setup};

/// The devices' name, in both namespaces.
const DEVICE: &str = "far";
/// A packet of the devices, at most.
const MTU: usize = 1500;

/// Packets to one address are late while this lives; answers come by the short way.
#[derive(Debug)]
pub struct Delay {
    pop: Namespace,
    source: IpAddr,
    far: Option<IpAddr>,
    end: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

impl Delay {
    pub(super) fn start(pop: &Namespace, backends: &Namespace, source: IpAddr, late: Duration) -> io::Result<Self> {
        let (enter, leave) = (open(pop)?, open(backends)?);
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let pump = std::thread::spawn(move || pump(enter, leave, late, &ended));
        Ok(Self { pop: pop.clone(), source, far: None, end, pump: Some(pump) })
    }

    /// From now on this address, and no other, is the far one. Connections live on.
    pub fn only(&mut self, address: IpAddr) -> io::Result<()> {
        if let Some(former) = self.far.take() {
            setup::ip(&self.pop, &format!("route del {former}/32 dev {DEVICE}"))?;
        }
        setup::ip(&self.pop, &format!("route add {address}/32 dev {DEVICE} src {}", self.source))?;
        self.far = Some(address);
        Ok(())
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        // The devices, and the route with them, go with the pump's descriptors.
        self.pump.take().map(JoinHandle::join);
    }
}

/// Makes the device in a namespace.
fn open(namespace: &Namespace) -> io::Result<File> {
    let file = namespace.run(|| -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: an all-zero `ifreq` is valid; the name is shorter than its field and stays terminated.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name.iter_mut().zip(DEVICE.bytes()).for_each(|(to, from)| *to = from.cast_signed());
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the request outlives the call, and the descriptor is open.
        match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
            0 => Ok(file),
            _ => Err(io::Error::last_os_error()),
        }
    })?;
    setup::ip(namespace, &format!("link set {DEVICE} up"))?;
    // The packets come by another way than answers go.
    namespace.run(|| {
        ["all", DEVICE].iter().try_for_each(|name| fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0"))
    })?;
    Ok(file)
}

/// Carries packets, each `late` after it came.
fn pump(mut from: File, mut to: File, late: Duration, ended: &AtomicBool) {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = [0; MTU];
    while !ended.load(Ordering::SeqCst) {
        while let Some((_, packet)) = waiting.pop_front_if(|(due, _)| *due <= Instant::now()) {
            // What the device refuses is lost, as on any way.
            let _ = to.write(&packet);
        }
        match from.read(&mut buffer) {
            Ok(n) => waiting.push_back((Instant::now() + late, buffer[..n].to_vec())),
            Err(why) if why.kind() == ErrorKind::WouldBlock => wait(&from, waiting.front().map(|(due, _)| *due)),
            // IPv6's own chatter, or the device is gone.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Until a packet comes or one is due; not for long, so that the end is seen.
fn wait(file: &File, due: Option<Instant>) {
    let most = Duration::from_millis(50);
    let time = due.map_or(most, |due| due.saturating_duration_since(Instant::now()).min(most));
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = libc::c_int::try_from(time.as_millis()).unwrap_or(0) + 1;
    // SAFETY: one valid `pollfd`.
    unsafe { libc::poll(&raw mut poll, 1, millis) };
}
