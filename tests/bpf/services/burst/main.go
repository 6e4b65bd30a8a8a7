// Wakes a reader -n times as the first thing it does, then prints "done". True numbers: N productive wakeups,
// and no others. With -daemon a process in its own session does that, whose parent has ended by then.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"services/kit"
)

func main() {
	n := flag.Int("n", 20, "wakeups")
	daemon := flag.Bool("daemon", false, "have them made by a daemon")
	parent := flag.Bool("parent", false, "be the daemon's parent")
	flag.Parse()
	again := func(args ...string) *exec.Cmd {
		cmd := exec.Command(os.Args[0], append(args, "-n", strconv.Itoa(*n))...)
		cmd.Stdout = os.Stdout
		return cmd
	}
	switch {
	case *daemon:
		kit.Must(again("-parent").Run())
		select {}
	case *parent:
		cmd := again()
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		kit.Must(cmd.Start())
	default:
		burst(*n)
		fmt.Println("done")
		syscall.Pause()
	}
}

func burst(n int) {
	r, w, err := os.Pipe()
	kit.Must(err)
	read := make(chan bool)
	go func() {
		for b := make([]byte, 1); ; read <- true {
			_, err := r.Read(b)
			kit.Must(err)
		}
	}()
	for i := 0; i < n; i++ {
		kit.Parked(1)
		w.Write([]byte{1})
		<-read
	}
}
