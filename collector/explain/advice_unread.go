// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"strconv"

	"github.com/halfopen/halfopen/collector/conn"
)

// OtherEnd says of a stalled connection that its other end is the connection c of this machine,
// whose application does not read.
func OtherEnd(c *conn.Connection) string {
	who := "its application"
	if p := c.Process; p != nil {
		who = fmt.Sprintf("process %d", p.PID)
	}
	return fmt.Sprintf("The other end is on this machine, too: %s has left %s there, see connection %s.", who, inBytes(c.ReceiveQueue), conn.FormatCookie(c.Cookie))
}

// adviseReading advises on a connection whose application does not read. No option of the
// socket and no sysctl makes it.
func (x *explainer) adviseReading() []Advice {
	pid := "PID" // to be filled in
	if p := x.conn.Process; p != nil {
		pid = strconv.FormatUint(uint64(p.PID), 10)
	}
	blocked := Advice{
		Text: "See where the threads of the application wait, as root on this machine. A thread that should read this socket often waits for a lock, a full queue, a database, or another peer. The tool of the language shows the same in its own terms: jstack, py-spy dump, or SIGQUIT for Java and Go.",
		How:  []string{"cat /proc/" + pid + "/task/*/stack", "gdb -p " + pid + " -batch -ex 'thread apply all bt'"},
	}
	leak := Advice{
		Text: "If no thread is to read it any more, such as that of a pool that forgot it, the application has to close it.",
		How:  []string{"close(fd)"},
	}
	if x.conn.State == conn.CloseWait {
		leak.Text = "The peer has closed its side. The application has to read the rest up to the end of the stream (read returns 0), or to close the socket at once, which discards the rest."
	}
	return []Advice{blocked, leak}
}
