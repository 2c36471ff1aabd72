//! edgeproxy
