// SPDX-License-Identifier: Apache-2.0

package collector

import "time"

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
