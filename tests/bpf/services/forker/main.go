// Starts programs. A command "N" runs /bin/true N times, -together at once, and answers
// "done". True numbers: the command's one productive read wakeup; its children have
// no poller and none of the numbers.
package main

import (
	"flag"
	"net"
	"os/exec"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	together := flag.Int("together", 1, "how many run at the same time")
	flag.Parse()
	kit.Commands(kit.Listen(*addr), func(_ net.Conn, n int) string {
		running := make(chan *exec.Cmd, *together-1)
		done := make(chan bool)
		go func() {
			for cmd := range running {
				kit.Must(cmd.Wait())
			}
			close(done)
		}()
		for i := 0; i < n; i++ {
			cmd := exec.Command("/bin/true")
			kit.Must(cmd.Start())
			running <- cmd
		}
		close(running)
		<-done
		return "done"
	})
}
