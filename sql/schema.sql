-- The routing database of an edgeproxy POP. `edgeproxy db init` creates it.
--
-- The columns up to `deleted` are those of the project edgeproxy descends from, so its databases work unmodified; every
-- column that was added has a default. The daemon only reads, names the columns it uses and ignores others.
--
-- Kept inside the limits of Corrosion (replicated SQLite): primary keys are TEXT NOT NULL, other NOT NULL columns have
-- a default, and there are no UNIQUE constraints, foreign keys, AUTOINCREMENT or views. Rows are removed by setting
-- `deleted` to 1.

CREATE TABLE backends (
    id         TEXT NOT NULL PRIMARY KEY CHECK (id <> ''),
    -- What clients ask for; groups backends.
    app        TEXT NOT NULL DEFAULT '' CHECK (app <> ''),
    -- sa, us, eu, ap, or a region of the table `regions`.
    region     TEXT NOT NULL DEFAULT '' CHECK (region <> ''),
    -- Address to connect to, IPv4 or IPv6.
    wg_ip      TEXT NOT NULL DEFAULT '' CHECK (wg_ip <> ''),
    port       INTEGER NOT NULL DEFAULT 0 CHECK (typeof(port) = 'integer' AND port BETWEEN 1 AND 65535),
    -- 0 takes the backend out of service.
    healthy    INTEGER DEFAULT 1 CHECK (healthy IN (0, 1)),
    -- Share of new clients; 0 takes none.
    weight     INTEGER DEFAULT 1 CHECK (typeof(weight) IN ('integer', 'null') AND weight BETWEEN 0 AND 4294967295),
    -- Connections from which on others of the same region score are preferred; 0 for never.
    soft_limit INTEGER DEFAULT 100
        CHECK (typeof(soft_limit) IN ('integer', 'null') AND soft_limit BETWEEN 0 AND 4294967295),
    -- Connections it takes at most; 0 for unlimited.
    hard_limit INTEGER DEFAULT 0
        CHECK (typeof(hard_limit) IN ('integer', 'null') AND hard_limit BETWEEN 0 AND 4294967295),
    deleted    INTEGER DEFAULT 0 CHECK (deleted IN (0, 1)),
    -- ISO 3166-1 alpha-2; shown where backends are listed and explained.
    country    TEXT CHECK (length(country) = 2),
    -- ready takes clients, drain keeps those it has, maint is out of service.
    state      TEXT DEFAULT 'ready' CHECK (state IN ('ready', 'drain', 'maint')),
    -- 1: the backend runs on this host and what is said in docs/same-host.md holds for it.
    same_host  INTEGER DEFAULT 0 CHECK (same_host IN (0, 1)),
    -- How POPs find out whether the backend is well, such as 'http path=/healthz', 'tcp' or 'none' (docs/health.md); NULL:
    -- as the app says, or not at all.
    health_check TEXT,
    -- The PROXY header that the backend gets, which names the client.
    send_proxy TEXT DEFAULT 'off' CHECK (send_proxy IN ('off', 'v1', 'v2')),
    CHECK (hard_limit = 0 OR soft_limit <= hard_limit)
);

-- Optional: regions besides the default ones, or default ones moved or given other countries.
CREATE TABLE regions (
    name      TEXT NOT NULL PRIMARY KEY CHECK (name <> ''),
    -- Degrees; used to find the next nearest region. Leave both out if it has no place.
    latitude  REAL CHECK (latitude BETWEEN -90 AND 90),
    longitude REAL CHECK (longitude BETWEEN -180 AND 180),
    -- ISO 3166-1 codes separated by commas, such as 'ZA,NA,BW'.
    countries TEXT,
    deleted   INTEGER DEFAULT 0 CHECK (deleted IN (0, 1)),
    CHECK ((latitude IS NULL) = (longitude IS NULL))
);

-- Optional: how apps are served. An app without a row is served as the defaults say.
CREATE TABLE apps (
    name      TEXT NOT NULL PRIMARY KEY CHECK (name <> ''),
    -- How a backend is chosen among those of one region: by load and weight, by a consistent hash of the client, or by
    -- measured round-trip time.
    selection TEXT DEFAULT 'least_load' CHECK (selection IN ('least_load', 'maglev', 'nearest_rtt')),
    -- Which region is next where the client's and this POP's have no room: by position, or by measured round-trip time
    -- from this POP, while all regions of the app that have a backend to be trusted have one.
    next_region TEXT DEFAULT 'position' CHECK (next_region IN ('position', 'rtt')),
    -- Whether a client comes back to its backend: until that is at its hard limit, at its soft limit, or not at all.
    -- NULL: strict, with maglev none.
    affinity  TEXT CHECK (affinity IN ('strict', 'soft', 'none')),
    -- Connections that may wait for a place while all backends are at their hard limit, and for how long.
    queue_length     INTEGER DEFAULT 0
        CHECK (typeof(queue_length) IN ('integer', 'null') AND queue_length BETWEEN 0 AND 1000000),
    queue_timeout_ms INTEGER DEFAULT 5000
        CHECK (typeof(queue_timeout_ms) IN ('integer', 'null') AND queue_timeout_ms BETWEEN 1 AND 600000),
    -- For backends of the app that say nothing themselves.
    health_check TEXT,
    deleted   INTEGER DEFAULT 0 CHECK (deleted IN (0, 1))
);

-- Optional: where clients arrive, besides `listen_addr`, and the app that leads to. Several may share an address and
-- port; then the TLS server name decides.
CREATE TABLE listeners (
    id        TEXT NOT NULL PRIMARY KEY CHECK (id <> ''),
    -- NULL: the only app of the database.
    app       TEXT,
    -- An address, or a prefix such as '203.0.113.0/24'; '0.0.0.0' and '::' stand for all. 'fd:NAME' is a socket that
    -- systemd hands over under that name; its port is that of the socket, and 0 here.
    address   TEXT DEFAULT '0.0.0.0',
    port      INTEGER NOT NULL DEFAULT 0
        CHECK (typeof(port) = 'integer' AND port BETWEEN 0 AND 65535 AND (port > 0 OR address LIKE 'fd:%')),
    -- The last port of a range that begins at `port`.
    last_port INTEGER CHECK (typeof(last_port) IN ('integer', 'null') AND last_port BETWEEN port AND 65535),
    -- TLS server names separated by commas; '*.example.com' is all below example.com. NULL: those that no other row names.
    server_name TEXT,
    -- Whether connections begin with a PROXY header.
    accept_proxy TEXT DEFAULT 'off' CHECK (accept_proxy IN ('off', 'optional', 'required')),
    -- Prefixes whose PROXY headers are believed, separated by commas.
    proxy_from TEXT,
    -- Connections held at once; 0 for unlimited.
    max_connections INTEGER DEFAULT 0
        CHECK (typeof(max_connections) IN ('integer', 'null') AND max_connections BETWEEN 0 AND 10000000),
    deleted   INTEGER DEFAULT 0 CHECK (deleted IN (0, 1))
);

-- Optional: where prefixes are, whatever the geo database says. The longest prefix counts.
CREATE TABLE geo_overrides (
    -- An address, or a prefix such as '203.0.113.0/24'.
    prefix    TEXT NOT NULL PRIMARY KEY CHECK (prefix <> ''),
    -- ISO 3166-1 alpha-2; its region routes, unless `region` names one.
    country   TEXT CHECK (length(country) = 2),
    region    TEXT,
    deleted   INTEGER DEFAULT 0 CHECK (deleted IN (0, 1)),
    CHECK (country IS NOT NULL OR region IS NOT NULL)
);

-- Optional: who may connect. The rule with the longest prefix that holds the client decides; of rules with the same
-- prefix a listener's before an app's before one for all. Without a rule a client may connect.
CREATE TABLE acl (
    id       TEXT NOT NULL PRIMARY KEY CHECK (id <> ''),
    -- The listener (its id, or the address of `listen_addr`) and the app it is about; NULL: all.
    listener TEXT,
    app      TEXT,
    -- An address, or a prefix such as '203.0.113.0/24'.
    prefix   TEXT NOT NULL DEFAULT '' CHECK (prefix <> ''),
    action   TEXT NOT NULL DEFAULT 'deny' CHECK (action IN ('allow', 'deny')),
    deleted  INTEGER DEFAULT 0 CHECK (deleted IN (0, 1))
);
