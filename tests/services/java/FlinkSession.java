import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.Executors;
import org.apache.flink.api.common.JobStatus;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.client.JobStatusMessage;
import org.apache.flink.runtime.execution.ExecutionState;
import org.apache.flink.runtime.executiongraph.AccessExecutionGraph;
import org.apache.flink.runtime.executiongraph.AccessExecutionVertex;
import org.apache.flink.runtime.minicluster.MiniCluster;
import org.apache.flink.runtime.minicluster.MiniClusterConfiguration;
import org.apache.flink.table.gateway.api.session.SessionEnvironment;
import org.apache.flink.table.gateway.api.session.SessionHandle;
import org.apache.flink.table.gateway.rest.util.SqlGatewayRestAPIVersion;
import org.apache.flink.table.gateway.service.application.Printer;
import org.apache.flink.table.gateway.service.application.ScriptExecutor;
import org.apache.flink.table.gateway.service.context.DefaultContext;
import org.apache.flink.table.gateway.service.context.SessionContext;

/**
 * A Flink session cluster in one process (Flink's MiniCluster with its REST server), and a place to hand whole SQL programs
 * to: they are read and run by the script executor of Flink's own SQL gateway, each in a session of its own.
 *
 * <p>args: PORT SLOTS key=value... Flink's REST server is on PORT, ours on PORT+1. The keys are Flink's options.
 *
 * <p>POST /sql?key=value... (body: the program; options of this session) runs it and waits for its INSERTs. 200: one line of
 * JSON for each job: its id, how it ended, milliseconds from its last task's start to its end, and of this process during
 * the program: milliseconds of CPU time, peak bytes of memory. 400: why not.
 *
 * <p>POST /text?key=value... runs it likewise; 200: what Flink's SQL client would print, the rows of SELECTs too.
 */
public final class FlinkSession {
  private final int port;
  private final MiniCluster cluster;

  private FlinkSession(int port, MiniCluster cluster) {
    this.port = port;
    this.cluster = cluster;
  }

  public static void main(String[] args) throws Exception {
    int port = Integer.parseInt(args[0]);
    Configuration settings = new Configuration();
    for (String key : List.of("rest.bind-address", "rest.address", "jobmanager.bind-host", "jobmanager.rpc.address",
        "taskmanager.host", "taskmanager.bind-host")) {
      settings.setString(key, "127.0.0.1");
    }
    settings.setString("rest.port", Integer.toString(port));
    settings.setString("rest.bind-port", Integer.toString(port));
    // what fails, fails; it is not tried again
    settings.setString("restart-strategy.type", "none");
    set(settings, List.of(args).subList(2, args.length));
    MiniCluster cluster =
        new MiniCluster(
            new MiniClusterConfiguration.Builder()
                .setConfiguration(settings)
                .setNumTaskManagers(1)
                .setNumSlotsPerTaskManager(Integer.parseInt(args[1]))
                .build());
    cluster.start();
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port + 1), 16);
    FlinkSession session = new FlinkSession(port, cluster);
    server.createContext("/sql", session::answer);
    server.createContext("/text", session::answer);
    server.setExecutor(Executors.newCachedThreadPool());
    server.start();
    System.out.println("ready");
  }

  private static void set(Configuration settings, List<String> pairs) {
    for (String pair : pairs) {
      int at = pair.indexOf('=');
      settings.setString(pair.substring(0, at), pair.substring(at + 1));
    }
  }

  private void answer(HttpExchange exchange) throws IOException {
    int status = 200;
    String text;
    try {
      String program = new String(exchange.getRequestBody().readAllBytes(), StandardCharsets.UTF_8);
      String query = exchange.getRequestURI().getRawQuery();
      List<String> pairs = new ArrayList<>();
      for (String pair : query == null ? new String[0] : query.split("&")) {
        pairs.add(URLDecoder.decode(pair, StandardCharsets.UTF_8));
      }
      boolean printed = exchange.getHttpContext().getPath().equals("/text");
      text = run(program, pairs, printed);
    } catch (Throwable e) {
      status = 400;
      StringBuilder chain = new StringBuilder();
      for (Throwable t = e; t != null; t = t.getCause()) {
        chain.append(t).append('\n');
      }
      text = chain.toString();
    }
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    exchange.sendResponseHeaders(status, bytes.length == 0 ? -1 : bytes.length);
    exchange.getResponseBody().write(bytes);
    exchange.close();
  }

  private String run(String program, List<String> pairs, boolean printed) throws Exception {
    String name = "program-" + UUID.randomUUID();
    Configuration settings = new Configuration();
    settings.setString("execution.target", "remote");
    settings.setString("execution.attached", "true");
    settings.setString("rest.address", "127.0.0.1");
    settings.setString("rest.port", Integer.toString(port));
    settings.setString("pipeline.name", name);
    settings.setString("table.dml-sync", "true");
    settings.setString("restart-strategy.type", "none");
    set(settings, pairs);
    SessionContext session =
        SessionContext.create(
            new DefaultContext(settings, Collections.emptyList()),
            new SessionHandle(UUID.randomUUID()),
            SessionEnvironment.newBuilder().setSessionEndpointVersion(SqlGatewayRestAPIVersion.getDefaultVersion()).build(),
            org.apache.flink.util.concurrent.Executors.newDirectExecutorService());
    Files.writeString(Path.of("/proc/self/clear_refs"), "5"); // forgets the peak
    long cpu = cpu();
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    try (AutoCloseable ignored = session::close) {
      new ScriptExecutor(session, new Printer(out)).execute(program);
    }
    cpu = cpu() - cpu;
    if (printed) {
      return out.toString(StandardCharsets.UTF_8);
    }
    StringBuilder lines = new StringBuilder();
    for (JobStatusMessage job : cluster.listJobs().get()) {
      if (!job.getJobName().equals(name)) {
        continue;
      }
      AccessExecutionGraph graph = cluster.getArchivedExecutionGraph(job.getJobId()).get();
      long begin = 0;
      for (AccessExecutionVertex vertex : graph.getAllExecutionVertices()) {
        begin = Math.max(begin, vertex.getStateTimestamp(ExecutionState.RUNNING));
      }
      lines.append(
          String.format(
              "{\"job\":\"%s\",\"state\":\"%s\",\"ms\":%d,\"cpu_ms\":%d,\"peak_bytes\":%d}%n",
              job.getJobId(), graph.getState(), graph.getStatusTimestamp(JobStatus.FINISHED) - begin, cpu, peak()));
    }
    return lines.toString();
  }

  private static long cpu() {
    var bean = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    return bean.getProcessCpuTime() / 1_000_000;
  }

  private static long peak() throws IOException {
    for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
      if (line.startsWith("VmHWM:")) {
        return Long.parseLong(line.replaceAll("[^0-9]", "")) * 1024;
      }
    }
    return 0;
  }
}
