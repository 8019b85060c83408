package nft

import (
	"time"

	"github.com/google/nftables"
)

// Glance says what is wrong with the table's rules, where anybody has changed the ruleset of the namespace since the last
// glance that found them whole; "" where nothing is. While nothing changes it costs one question to the kernel. It does
// not look at elements: what it is for is the table that somebody flushed, and with it every policy of the node, as
// restarting another firewall does.
func (t *Table) Glance() (damage string, err error) {
	now, err := t.generation()
	if err != nil || now == t.glanced {
		return "", err
	}
	if err := t.sock.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	tables, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", err
	}
	damage = "it is gone"
	for _, other := range tables {
		if other.Name == TableName {
			_, damage, err = t.inspect()
		}
	}
	if err == nil && damage == "" {
		t.glanced = now
	}
	return damage, err
}
