// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Netstat returns the counters of the namespace's network stack from /proc/net/snmp and
// /proc/net/netstat, by the names that nstat(8) prints: "TcpRetransSegs",
// "TcpExtTCPTimeouts".
func (n *Namespace) Netstat() (map[string]int, error) {
	return readNetstat(strconv.Itoa(n.holder.Pid)) // the holder is always in this namespace
}

// Netstat returns the same counters for the namespace of this process.
func Netstat() (map[string]int, error) { return readNetstat("self") }

func readNetstat(pid string) (map[string]int, error) {
	counters := make(map[string]int)
	for _, file := range []string{"snmp", "netstat"} {
		body, err := os.ReadFile("/proc/" + pid + "/net/" + file)
		if err != nil {
			return nil, err
		}
		if err := parseNetstat(string(body), counters); err != nil {
			return nil, fmt.Errorf("parse /proc/net/%s: %w", file, err)
		}
	}
	return counters, nil
}

// parseNetstat reads pairs of lines: a protocol with the names of its counters, then the
// same protocol with their values.
func parseNetstat(body string, into map[string]int) error {
	var names []string
	for line := range strings.Lines(body) {
		fields := strings.Fields(line)
		if names == nil {
			names = fields
			continue
		}
		if len(fields) != len(names) || len(fields) == 0 || fields[0] != names[0] {
			return fmt.Errorf("%d values for %d names", len(fields), len(names))
		}
		for i, value := range fields[1:] {
			v, err := strconv.Atoi(value)
			if err != nil {
				return err
			}
			into[strings.TrimSuffix(names[0], ":")+names[i+1]] = v
		}
		names = nil
	}
	return nil
}
