// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// The map has room for as many destinations as there can be, and the defaults.
func TestMiddleboxesHaveRoom(t *testing.T) {
	timeouts := make(map[netip.Prefix]time.Duration)
	for i := range MostMiddleboxes {
		timeouts[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)] = time.Minute
	}
	k := load(t, Options{MiddleboxTimeouts: timeouts})
	var jiffies uint32
	for to, want := range map[abi.Destination]time.Duration{
		{Bits: 128, Address: [4]uint32{0, 0, 0xffff0000, 0x0102030a}}: time.Minute,       // 10.3.2.1
		{Bits: 128, Address: [4]uint32{0, 0, 0xffff0000, 0x0102ff0a}}: 350 * time.Second, // 10.255.2.1
		{Bits: 128, Address: [4]uint32{0xb80d0120, 0, 0, 0x01000000}}: 350 * time.Second, // 2001:db8::1
	} {
		if err := k.objs.Middleboxes.Lookup(&to, &jiffies); err != nil || jiffies != k.jiffies(want) {
			t.Errorf("%v: %d jiffies, %v, want %d", to, jiffies, err, k.jiffies(want))
		}
	}
	timeouts[netip.MustParsePrefix("::1/128")] = time.Minute
	if _, err := Load(Options{MiddleboxTimeouts: timeouts}); err == nil || err.Error() != "1025 middlebox timeouts, at most 1024 are possible" {
		t.Errorf("with one too many: %v", err)
	}
}

// The risks by control group add up to those of the table, unless the map is full.
func TestRisksByCgroup(t *testing.T) {
	k := load(t, Options{})
	const many = 23
	for range many { // a risk also where the peer is local
		client, _ := pair(t)
		raw, err := client.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var set error
		err = raw.Control(func(fd uintptr) {
			set = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1<<30))
		})
		if err := errors.Join(err, set); err != nil {
			t.Fatal(err)
		}
	}
	census := func(cgroups bool) CensusResult {
		t.Helper()
		selection := Select()
		selection.CgroupRisks = cgroups
		res, err := k.PeriodicCensus(t.Context(), selection, nil, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if res := census(false); res.CgroupRisks != nil {
		t.Errorf("it was not asked for, and is %v", res.CgroupRisks)
	}
	res := census(true)
	var sum abi.RiskCounts
	for _, counts := range res.CgroupRisks {
		for risk, n := range counts.Risks {
			sum.Risks[risk] += n
		}
	}
	if n := sum.Risks[abi.RiskUserTimeoutOverridesKeepcnt]; n < many {
		t.Errorf("%d have a TCP_USER_TIMEOUT, there are at least %d", n, many)
	}
	var own abi.CensusCounts
	for _, table := range k.ownTables {
		add(&own, &table.counts)
	}
	for risk, n := range sum.Risks {
		if want := res.Counts.Risks[risk] - own.Risks[risk]; uint64(n) != want {
			t.Errorf("%d at risk %d by control group, %d in all", n, risk, want)
		}
	}
	for id := range uint64(k.objs.CgroupRisks.MaxEntries()) {
		if err := k.objs.CgroupRisks.Put(id+1<<40, abi.RiskCounts{}); err != nil {
			t.Fatal(err)
		}
	}
	if res := census(true); len(res.CgroupRisks) != int(k.objs.CgroupRisks.MaxEntries()) {
		t.Errorf("the full map has %d groups", len(res.CgroupRisks))
	}
	if after := census(true); len(after.CgroupRisks) != len(res.CgroupRisks) {
		t.Errorf("after a full map there are %d groups, before there were %d", len(after.CgroupRisks), len(res.CgroupRisks))
	}
}

func TestSysctlsAreThoseOfTheNamespace(t *testing.T) {
	k := load(t, Options{})
	all, err := k.Sysctls(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own, err := ownNetns()
	if err != nil {
		t.Fatal(err)
	}
	s, has := all[own]
	if !has {
		t.Fatalf("the own namespace %d is not among %d", own, len(all))
	}
	for name, got := range map[string]uint32{
		"keepalive_time": s.KeepaliveTime / k.hz, "keepalive_intvl": s.KeepaliveIntvl / k.hz, "keepalive_probes": uint32(s.KeepaliveProbes),
		"retries2": uint32(s.Retries2), "syn_retries": uint32(s.SynRetries), "orphan_retries": uint32(s.OrphanRetries), "fin_timeout": s.FinTimeout / k.hz,
	} {
		text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_" + name)
		if err != nil {
			t.Fatal(err)
		}
		if want, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || got != uint32(want) {
			t.Errorf("tcp_%s is %d, want %d, %v", name, got, want, err)
		}
	}
	if res, err := k.Census(t.Context(), Select(), nil); err != nil || res.Namespaces != len(all) {
		t.Errorf("%d namespaces have sysctls, of %d, %v", len(all), res.Namespaces, err)
	}
}
