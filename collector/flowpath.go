// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector/conn"
)

const (
	// FlowPathTimeout is the longest wait for the answer of FlowPath.
	FlowPathTimeout = 2 * time.Second
	// flowPathsPerSecond questions are answered, and flowPathsAtOnce of them in a
	// row: one takes a thread and about 0.3 ms of CPU time.
	flowPathsPerSecond = 20
	flowPathsAtOnce    = 50
	// maxFlowPaths is the most threads that answer at once, those included that hang.
	maxFlowPaths = 8
)

// flowPathLimits bounds what the questions of FlowPath take.
type flowPathLimits struct {
	rate    *rate.Limiter
	running chan struct{} // a value for each running thread
}

func newFlowPathLimits() flowPathLimits {
	return flowPathLimits{rate.NewLimiter(flowPathsPerSecond, flowPathsAtOnce), make(chan struct{}, maxFlowPaths)}
}

// FlowPath implements [Privileged]. The thread that it starts enters the namespace and then
// drops all its capabilities: what it asks there takes none, and changes nothing.
func (d *Direct) FlowPath(ctx context.Context, netns bpf.NetnsRef, flow conn.Flow) (*conn.Path, error) {
	q, err := newFlowQuestion(flow)
	if err != nil {
		return nil, err
	}
	if !d.flows.rate.Allow() {
		return nil, fmt.Errorf("more than %d such questions a second: %w", flowPathsPerSecond, unix.EBUSY)
	}
	select {
	case d.flows.running <- struct{}{}:
	default:
		return nil, fmt.Errorf("%d such questions are being answered: %w", maxFlowPaths, unix.EBUSY)
	}
	ctx, cancel := context.WithTimeout(ctx, FlowPathTimeout)
	defer cancel()
	type answer struct {
		path *conn.Path
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		defer func() { <-d.flows.running }()
		var a answer
		a.err = netns.Do(func() (err error) {
			a.path, err = q.ask()
			return err
		})
		answered <- a
	}()
	select {
	case a := <-answered:
		return a.path, a.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("no answer within %v", FlowPathTimeout)
		}
		return nil, ctx.Err()
	}
}
