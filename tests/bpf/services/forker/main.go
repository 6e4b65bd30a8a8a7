// Starts programs. A command "N" runs /bin/true N times, -together at once, and answers
// "done". True numbers: the command's one productive read wakeup; its children have no poller and no numbers.
// With -wake M it runs itself instead, to pass M messages to another goroutine and M back: 2 M ready calls,
// besides a few of the runtime's own, and no network.
package main

import (
	"flag"
	"net"
	"os"
	"os/exec"
	"strconv"

	"services/kit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address")
	together := flag.Int("together", 1, "how many run at the same time")
	wake := flag.Int("wake", 0, "messages that each child passes to and fro")
	worker := flag.Bool("worker", false, "be one of the children")
	flag.Parse()
	if *worker {
		work(*wake)
		return
	}
	run := func() *exec.Cmd { return exec.Command("/bin/true") }
	if *wake > 0 {
		run = func() *exec.Cmd { return exec.Command(os.Args[0], "-worker", "-wake", strconv.Itoa(*wake)) }
	}
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
			cmd := run()
			kit.Must(cmd.Start())
			running <- cmd
		}
		close(running)
		<-done
		return "done"
	})
}

// Each message is one ready call: the first goroutine parks, and the other one readies it.
func work(n int) {
	there, back := make(chan int), make(chan int)
	go func() {
		for i := range there {
			back <- i
		}
	}()
	for i := 0; i < n; i++ {
		there <- i
		<-back
	}
}
