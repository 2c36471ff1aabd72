-- Compatibility fixture: a routing table as the project edgeproxy descends from makes it. Tests load this script into
-- an empty file, and its INSERTs into a database made by `edgeproxy db init`; both must route.

CREATE TABLE backends (
    id TEXT PRIMARY KEY,
    app TEXT,
    region TEXT,
    wg_ip TEXT,
    port INTEGER,
    healthy INTEGER,
    weight INTEGER,
    soft_limit INTEGER,
    hard_limit INTEGER,
    deleted INTEGER DEFAULT 0
);

INSERT INTO backends (id, app, region, wg_ip, port, healthy, weight, soft_limit, hard_limit)
VALUES ('sa-node-1', 'myapp', 'sa', '10.50.1.1', 8080, 1, 2, 100, 150);
INSERT INTO backends (id, app, region, wg_ip, port, healthy, weight, soft_limit, hard_limit)
VALUES ('sa-node-2', 'myapp', 'sa', '10.50.1.2', 8080, 1, 1, 100, 150);
INSERT INTO backends (id, app, region, wg_ip, port, healthy, weight, soft_limit, hard_limit)
VALUES ('us-node-1', 'myapp', 'us', '10.50.2.1', 8080, 1, 2, 100, 200);
INSERT INTO backends (id, app, region, wg_ip, port, healthy, weight, soft_limit, hard_limit)
VALUES ('eu-node-1', 'myapp', 'eu', '10.50.3.1', 8080, 1, 2, 100, 200);
INSERT INTO backends (id, app, region, wg_ip, port, healthy, weight, soft_limit, hard_limit)
VALUES ('ap-node-1', 'myapp', 'ap', 'fdaa:9:3ca6:a7b:5c5:84eb:a8dd:2', 8080, 0, 1, 50, 100);
